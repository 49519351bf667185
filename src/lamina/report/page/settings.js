// How the settings of runs differ.
function drawPair(content) {
  const [first, second] = [find("first"), find("second")];
  const rows = content.rows;
  const options = rows.map((row, place) => [String(place), row.name]);
  fillSelect(first, options, "0");
  fillSelect(second, options, "1");
  const draw = () => {
    const [one, two] = [rows[Number(first.value)], rows[Number(second.value)]];
    const keys = content.settings.slice(1).map(([key]) => key).filter((key) => one.config[key] !== two.config[key]);
    const values = keys.map((key) => [key, one.config[key] ?? "–", two.config[key] ?? "–"]);
    fillTable("pair", [["setting", one.name, two.name], ...values]);
  };
  first.addEventListener("input", draw);
  second.addEventListener("input", draw);
  draw();
}

function drawSettings(content) {
  const differ = fillTable("settings", content.settings);
  if (differ) drawPair(content);
  return differ;
}
