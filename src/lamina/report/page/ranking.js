// The ranked table: sorted, filtered and grouped by the keyboard or a pointer.
const MARKS = { best: "\u25c6", "within noise": "\u25cf", "within noise of the best": "\u25cf" };

function markOf(standing) {
  const mark = MARKS[standing];
  return mark && element("span", { class: `mark ${standing.split(" ")[0]}`, role: "img", "aria-label": standing, title: standing }, mark);
}

const SHOWN = {
  all: () => true,
  "best and within noise": (row) => row.standing !== "other",
  completed: (row) => row.status === "completed",
  "not completed": (row) => row.status !== "completed",
};

function shownRows(content) {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const isShown = SHOWN[state.show] ?? SHOWN.all;
  const rows = content.rows.filter((row) => isShown(row) && words.every((word) => row.text.includes(word)));
  if (!state.sort) return rows;
  const sign = state.order === "descending" ? -1 : 1;
  const key = (row) => valueOf(row.values[state.sort]) ?? undefined;
  return rows.sort((one, two) => {
    const [a, b] = [key(one), key(two)];
    // Runs without a figure come last in both directions.
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
  });
}

function headerCell(column, onsort) {
  const isSorted = state.sort === column.key;
  const arrow = isSorted ? (state.order === "descending" ? "\u25be" : "\u25b4") : "";
  const button = element(
    "button",
    { type: "button", id: `sort-${column.key}`, onclick: () => onsort(column), title: column.about },
    column.label,
    element("span", { class: "arrow", "aria-hidden": "true" }, arrow),
  );
  const order = isSorted ? state.order : null;
  return element("th", { scope: "col", class: column.kind, "aria-sort": order }, button);
}

function bodyRow(content, row) {
  const cells = content.columns.map((column) => {
    const text = formatted(row.values[column.key], column.kind);
    if (column.key === "name") return element("th", { scope: "row", class: "name" }, markOf(row.standing), text);
    return element("td", { class: column.kind }, markOf(row.standings[column.key]), text);
  });
  return element("tr", { class: row.standing.replace(" ", "-") }, ...cells);
}

function bodies(content, rows) {
  if (!state.group) return [element("tbody", {}, ...rows.map((row) => bodyRow(content, row)))];
  const groups = Map.groupBy(rows, (row) => row.overrides[state.group] ?? "not given");
  return [...groups].map(([value, members]) => {
    const title = `${state.group}=${value}: ${members.length}`;
    const heading = element("th", { colspan: content.columns.length, scope: "rowgroup" }, element("span", {}, title));
    return element("tbody", {}, element("tr", { class: "group" }, heading), ...members.map((row) => bodyRow(content, row)));
  });
}

function moveAmongHeaders(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const buttons = [...event.currentTarget.querySelectorAll("thead button")];
  const place = buttons.indexOf(document.activeElement);
  if (!step || place < 0) return;
  event.preventDefault();
  buttons[(place + step + buttons.length) % buttons.length].focus();
}

function drawRanking(content, onchange) {
  const table = find("ranking");
  const draw = () => {
    const focused = document.activeElement?.id;
    const rows = shownRows(content);
    const header = element("tr", {}, ...content.columns.map((column) => headerCell(column, sort)));
    table.replaceChildren(element("thead", {}, header), ...bodies(content, rows));
    find("count").textContent = `${rows.length} of ${content.rows.length} runs`;
    if (focused?.startsWith("sort-")) find(focused)?.focus();
    onchange(rows);
  };
  const sort = ({ key, order }) => {
    const opposite = { ascending: "descending", descending: "ascending" };
    remember({ sort: key, order: state.sort === key ? opposite[state.order] : order });
    draw();
  };
  table.addEventListener("keydown", moveAmongHeaders);
  fillSelect(find("show"), Object.keys(SHOWN).map((name) => [name, name]), state.show);
  fillSelect(find("group"), [["", "nothing"], ...content.keys.map((key) => [key, key])], state.group);
  find("filter").value = state.filter;
  for (const id of ["filter", "show", "group"]) {
    find(id).addEventListener("input", (event) => {
      remember({ [id]: event.target.value });
      draw();
    });
  }
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  const places = content.rows.flatMap((row) => [row.standing, ...Object.values(row.standings)]);
  const near = places.some((place) => place.startsWith("within noise"));
  find("legend").textContent = places.includes("best")
    ? `${MARKS.best}\u00a0best, by healed loss and in each task` + (near ? `   ${MARKS["within noise"]}\u00a0within noise of it` : "")
    : "";
  draw();
}
