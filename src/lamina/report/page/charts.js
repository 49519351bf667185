// Draws the charts, which are Vega-Lite specifications, and gives them the rows that the table shows.
const views = new Map();
let drawnRows = [];
const ERRORS = 1; // not its warnings of a chart without rows

function showTip(handler, event, item, value) {
  const tip = find("tip") ?? document.body.appendChild(element("div", { id: "tip", hidden: true }));
  tip.hidden = !value;
  if (!value) return;
  const lines = Object.entries(value).map(([key, text]) => element("div", {}, element("b", {}, `${key} `), String(text)));
  tip.replaceChildren(...lines);
  const left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
  const top = Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8);
  Object.assign(tip.style, { left: `${Math.max(8, left)}px`, top: `${Math.max(8, top)}px` });
}

async function drawChart(place, chart) {
  const plot = element("div", { class: "plot" });
  place.append(element("figure", { id: chart.id }, element("figcaption", {}, chart.title), plot));
  const sized = { width: "container", autosize: { type: "fit-x", contains: "padding" } };
  const spec = { ...chart.spec, ...sized, datasets: { runs: copies() } };
  // Without `ast` Vega would compile its expressions, which the page's policy forbids.
  const options = { mode: "vega-lite", ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: showTip };
  const { view } = await vegaEmbed(plot, spec, { ...options, logLevel: ERRORS });
  if (chart.spec.data.name === "runs") views.set(chart.id, view);
  const picture = plot.querySelector("svg");
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", chart.title);
}

async function drawCharts(section, charts) {
  const place = section.querySelector(".charts");
  for (const figure of place.children) {
    views.get(figure.id)?.finalize();
    views.delete(figure.id);
  }
  place.replaceChildren();
  await Promise.all(charts.map((chart) => drawChart(place, chart)));
}

// A view writes into its rows, so each gets copies.
const copies = () => drawnRows.map((row) => ({ ...row }));

function updateCharts(rows) {
  drawnRows = rows;
  for (const view of views.values()) view.data("runs", copies()).runAsync();
}
