// What happened, newest first, and when in the last quarter of an hour.

import { el, say, svg } from "./dom.js";
import { follow } from "./store.js";
import { clock, happened } from "./words.js";

const SHOWN = 200;
const MINUTES = 15;
const KINDS = [["all", "All"], ["exit", "Exits"], ["oom", "Out of memory"]];

export function timeline(store, signal, only = "") {
  let kind = "all";
  const list = el("ol", { class: "events" });
  const strip = el("div", { class: "strip" });
  const empty = el("p", { class: "empty", hidden: true });
  const buttons = KINDS.map(([name, title]) => el("button", {
    type: "button", class: "chip", "aria-pressed": String(name === kind),
    onclick: () => {
      kind = name;
      buttons.forEach((each, index) => each.setAttribute("aria-pressed", String(KINDS[index][0] === kind)));
      draw();
    },
  }, title));
  const known = new Map();

  function draw() {
    const own = only ? store.events.filter((each) => each.id === only) : store.events;
    const wanted = own.filter((each) => {
      const { exit } = happened(each);
      return kind === "all" || (kind === "exit" ? exit && each.topic === "/tasks/exit" : each.topic === "/tasks/oom");
    }).slice(0, SHOWN);
    const now = wanted.map((event) => {
      if (!known.has(event)) known.set(event, item(event));
      return known.get(event);
    });
    for (const event of known.keys()) if (!store.events.includes(event)) known.delete(event);
    if (now.length !== list.children.length || now.some((each, index) => list.children[index] !== each)) list.replaceChildren(...now);
    draw_strip(own);
    empty.hidden = Boolean(wanted.length);
    say(empty, kind !== "all" ? "Nothing of this kind." : store.journal ? "Nothing has happened yet." : "This daemon keeps no events: what happens from now on is shown.");
  }

  function item(event) {
    const { word, kind: colour } = happened(event);
    const name = event.id && !only
      ? el("a", { href: `#/task/${encodeURIComponent(event.id)}`, class: "mono" }, event.id) : null;
    return el("li", { class: colour, title: event.about },
      el("time", { datetime: new Date(event.at).toISOString() }, clock(event.at)),
      el("span", { class: "what" }, name, " ", word));
  }

  function draw_strip(events) {
    const end = Date.now();
    const begin = end - MINUTES * 60000;
    const marks = events.filter((each) => each.at > begin).reverse().map((event) => {
      const { kind: colour, exit } = happened(event);
      const x = (1000 * (event.at - begin)) / (end - begin);
      return svg("rect", { class: `mark ${colour}`, x: x.toFixed(1), y: exit ? 2 : 12, width: 3, height: exit ? 26 : 16, rx: 1 });
    });
    strip.replaceChildren(
      svg("svg", { viewBox: "0 0 1000 30", preserveAspectRatio: "none", role: "img", "aria-label": `${marks.length} events in the last ${MINUTES} minutes` },
        svg("line", { x1: 0, x2: 1000, y1: 28.5, y2: 28.5, class: "ground" }), marks),
      el("span", {}, `${MINUTES} min ago`), el("span", {}, "now"));
  }

  follow(store, ["events", "hello"], draw, signal);
  const timer = setInterval(draw, 5000);
  signal.addEventListener("abort", () => clearInterval(timer));
  return el("section", { class: "card", "aria-labelledby": "events-title" },
    el("div", { class: "head" }, el("h2", { id: "events-title" }, "Events"), el("div", { class: "chips" }, buttons)),
    strip, list, empty);
}
