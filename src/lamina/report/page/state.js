// What a reader has chosen. It stands in the address, so that a reload or a link keeps it.
const state = { sort: "", order: "ascending", filter: "", show: "all", group: "", measure: "" };
Object.assign(state, Object.fromEntries(new URLSearchParams(location.hash.slice(1))));

function remember(changes) {
  Object.assign(state, changes);
  const chosen = Object.entries(state).filter(([, value]) => value);
  history.replaceState(null, "", `#${new URLSearchParams(chosen)}`);
}

// While the sweep goes on, the page reloads itself, unless it is out of sight.
function reloadWhileUnfinished(isFinished) {
  const place = JSON.parse(state.place || "null");
  if (place) {
    for (const id of place.open) find(id)?.setAttribute("open", "");
    find(place.focus)?.focus({ preventScroll: true });
    scrollTo(0, place.top);
    remember({ place: "" });
  }
  if (isFinished) return;
  setInterval(() => {
    if (document.hidden) return;
    const open = [...document.querySelectorAll("details[open]")].map((each) => each.id);
    remember({ place: JSON.stringify({ top: scrollY, focus: document.activeElement.id, open }) });
    location.reload();
  }, 10000);
}
