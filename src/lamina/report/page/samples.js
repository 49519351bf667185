// Answers before and after healing, side by side.
function drawSamples(content) {
  const answering = content.rows.filter((row) => row.samples.length);
  if (!answering.length) return false;
  const select = find("answering");
  fillSelect(select, answering.map((row, place) => [String(place), row.name]), "0");
  const draw = () => {
    const { samples } = answering[Number(select.value)];
    find("answers").replaceChildren(...samples.map((sample) => element("article", {}, ...sample.map(part))));
  };
  const part = ([name, text]) =>
    element("div", { class: `part ${name}` }, element("h3", {}, name), element("pre", { tabindex: "0" }, text));
  select.addEventListener("input", draw);
  draw();
  return true;
}
