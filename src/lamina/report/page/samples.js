// What a chosen run answers, and how it does in tasks.
function chooseRun(select, rows, draw) {
  fillSelect(select, rows.map((row, place) => [String(place), row.name]), "0");
  const show = () => draw(rows[Number(select.value)]);
  select.addEventListener("input", show);
  if (rows.length) show();
  return rows.length > 0;
}

function drawSamples(content) {
  const part = ([name, text]) =>
    element("div", { class: `part ${name}` }, element("h3", {}, name), element("pre", { tabindex: "0" }, text));
  return chooseRun(find("answering"), content.rows.filter((row) => row.samples.length), ({ samples }) => {
    find("answers").replaceChildren(...samples.map((sample) => element("article", {}, ...sample.map(part))));
  });
}

function drawTasks(content) {
  find("tasks-note").textContent = content.tasksNote;
  return chooseRun(find("evaluated"), content.rows.filter((row) => row.tasks.length), ({ tasks }) => {
    fillTable("scores", [content.tasks, ...tasks]);
  });
}
