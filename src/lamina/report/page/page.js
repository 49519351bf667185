// Puts the page together from its content; sections without data are left out.
async function drawPage() {
  const content = JSON.parse(find("content").textContent);
  find("progress").textContent = content.progress;
  find("headline").textContent = content.headline;
  find("seeds-note").textContent = content.seedsNote;
  const chartsOf = (id) => content.charts.filter((chart) => chart.section === id);
  const has = {
    runs: content.rows.length > 0,
    quality: chartsOf("quality").length > 0,
    tasks: drawTasks(content),
    seeds: fillTable("spreads", content.seeds),
    dropped: chartsOf("dropped").length > 0,
    healing: chartsOf("healing").length > 0,
    scan: chartsOf("scan").length > 0,
    samples: drawSamples(content),
    configuration: drawSettings(content),
    problems: fillTable("reasons", content.problems),
    provenance: fillTable("origins", content.provenance),
  };
  for (const [id, isShown] of Object.entries(has)) {
    if (!isShown) find(id).remove();
    else document.querySelector("nav").append(element("a", { href: `#${id}` }, find(id).querySelector("h2").textContent));
  }
  if (has.runs) drawRanking(content, updateCharts);
  const drawing = ["dropped", "healing", "scan"].filter((id) => has[id]).map((id) => drawCharts(find(id), chartsOf(id)));
  if (has.quality) drawing.push(drawQuality(chartsOf("quality")));
  await Promise.all(drawing);
  reloadWhileUnfinished(content.isFinished);
  document.documentElement.dataset.drawn = "true";
}

function drawQuality(charts) {
  const measures = [...new Set(charts.map((chart) => chart.measure))];
  const select = find("measure");
  const draw = () => drawCharts(find("quality"), charts.filter((chart) => chart.measure === select.value));
  fillSelect(select, measures.map((name) => [name, name]), state.measure);
  select.addEventListener("input", () => {
    remember({ measure: select.value });
    draw();
  });
  return draw();
}

drawPage();
