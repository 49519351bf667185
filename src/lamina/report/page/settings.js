// What differs between runs: settings, seeds, failures and provenance.
function drawPair(content) {
  const [first, second] = [find("first"), find("second")];
  const rows = content.rows;
  const options = rows.map((row, place) => [String(place), row.name]);
  fillSelect(first, options, "0");
  fillSelect(second, options, "1");
  const draw = () => {
    const [one, two] = [rows[Number(first.value)], rows[Number(second.value)]];
    const keys = content.settings.map(([key]) => key).filter((key) => one.config[key] !== two.config[key]);
    const header = ["setting", one.name, two.name];
    fillTable(find("pair"), header, keys.map((key) => [key, one.config[key] ?? "–", two.config[key] ?? "–"]));
  };
  first.addEventListener("input", draw);
  second.addEventListener("input", draw);
  draw();
}

function drawSettings(content) {
  if (!content.settings.length) return false;
  drawPair(content);
  fillTable(find("settings"), ["setting", "values (runs)"], content.settings);
  return true;
}

function drawSeeds(content) {
  fillTable(find("spreads"), ["runs", "figure", "seeds", "mean", "standard deviation"], content.seeds);
  return content.seeds.length > 0;
}

function drawProblems(content) {
  fillTable(find("reasons"), ["run", "status", "reason"], content.problems);
  return content.problems.length > 0;
}

function drawProvenance(content) {
  fillTable(find("origins"), ["what", "values (runs)"], content.provenance);
  return content.provenance.length > 0;
}
