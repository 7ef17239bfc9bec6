// One container: what it uses, what it writes, what is said about it.

import { ask, possible, word } from "./act.js";
import { el, say } from "./dom.js";
import { Feed } from "./feed.js";
import { Graph } from "./graph.js";
import { Life } from "./life.js";
import { follow } from "./store.js";
import { timeline } from "./timeline.js";
import { age, bytes, percent, state } from "./words.js";

const LINES = 2000;
const TABS = ["Life", "Output", "Events", "Processes", "Specification"];
let shown = "Life";

export function detail(store, signal, id) {
  const life = new Life();
  const output = el("pre", { class: "output", tabindex: "0", "aria-label": "Output" });
  const quiet = el("p", { class: "empty" }, "It has not written anything yet.");
  const processes = el("tbody");
  const spec = el("pre", { class: "output", tabindex: "0", "aria-label": "Specification" });
  const panels = {
    Life: [life.element],
    Output: [quiet, output],
    Events: [timeline(store, signal, id)],
    Processes: [el("table", { class: "processes" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "PID"), el("th", { scope: "col" }, "Command"))), processes)],
    Specification: [spec],
  };
  const tabs = TABS.map((name) => el("button", {
    type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => show(name),
  }, name));
  const boxes = TABS.map((name) => el("div", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}` }, panels[name]));

  function show(name) {
    shown = name;
    TABS.forEach((each, index) => {
      tabs[index].setAttribute("aria-selected", String(each === name));
      tabs[index].tabIndex = each === name ? 0 : -1;
      boxes[index].hidden = each !== name;
    });
    if (name === "Output") output.scrollTop = output.scrollHeight;
  }

  const bar = el("div", { role: "tablist", "aria-label": "About this container" }, tabs);
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (TABS.indexOf(shown) + step + TABS.length) % TABS.length;
    show(TABS[next]);
    tabs[next].focus();
  });

  const badge = el("span");
  const buttons = el("div", { class: "buttons" });
  const facts = el("dl", { class: "facts" });
  const share = el("b");
  const size = el("b");
  const used = [];
  const cpu = new Graph(60);
  const memory = new Graph(60);
  used.push(
    el("div", { class: "big" }, el("span", {}, "CPU"), share, cpu.element),
    el("div", { class: "big" }, el("span", {}, "Memory"), size, memory.element));
  let about = {};
  let acts = "";

  function draw() {
    const task = store.tasks.get(id);
    const { word: said, kind } = task ? state(task) : { word: store.begun ? "no task" : "…", kind: "quiet" };
    say(badge, said);
    badge.className = `badge ${kind}`;
    const actions = task ? possible(task) : [];
    if (actions.join() !== acts) {
      acts = actions.join();
      buttons.replaceChildren(...actions.map((each) => el("button", {
        type: "button", class: ["kill", "delete"].includes(each) ? "bad" : "quiet", "data-action": each,
        onclick: () => ask(store, store.tasks.get(id), each),
      }, word(each))));
    }
    const runs = task && ["running", "paused"].includes(task.status);
    const use = runs ? store.use.get(id) : undefined;
    const past = (runs && store.past.get(id)) || { cpu: [], memory: [] };
    for (const each of used) each.hidden = !runs;
    say(share, use ? percent(use[0]) : "–");
    say(size, use ? `${bytes(use[1])}${use[2] ? ` of ${bytes(use[2])}` : ""}` : "–");
    cpu.show(past.cpu, 0.1, `CPU ${share.textContent}, and in the last two minutes`);
    memory.show(past.memory, 1 << 20, `Memory ${size.textContent}, and in the last two minutes`);
    const pairs = [
      ["Image", about.image ?? task?.image], ["Command", task?.command], ["PID", task?.pid || ""],
      ["Age", about.created && age(about.created)], ["Runtime", about.runtime ?? task?.runtime],
      ["Shim", task?.shim ? `pid ${task.shim}` : ""], ["Processes", use?.[3] ?? ""], ["Snapshot", about.snapshot],
      ...Object.entries(about.labels ?? {}).filter(([name]) => name !== "io.taskd.client/log"),
    ].filter(([, value]) => value !== undefined && value !== "");
    if (pairs.flat().join("\n") !== facts.dataset.all) {
      facts.dataset.all = pairs.flat().join("\n");
      facts.replaceChildren(...pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", { class: "mono" }, String(value))]));
    }
    life.since(store.events.filter((each) => each.id === id && each.topic.startsWith("/tasks/")));
  }

  async function load() {
    try {
      const answer = await fetch(`/task/${encodeURIComponent(id)}`, { signal });
      if (!answer.ok) {
        say(spec, (await answer.text()).trim());
        return;
      }
      about = await answer.json();
      say(spec, about.spec);
      draw();
    } catch {
      // It has been left, or there is nobody to ask, which is said at the top.
    }
  }

  const feed = new Feed(`/task/${encodeURIComponent(id)}/feed`, ["output", "quiet", "calls", "deaf", "processes"]);
  feed.addEventListener("open", () => {
    output.replaceChildren();
    load();
  });
  feed.addEventListener("output", ({ detail: entries }) => {
    quiet.hidden = true;
    const end = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    output.append(...entries.map((each) => el("span", { class: each.stream }, each.text)));
    while (output.childElementCount > LINES) output.firstElementChild.remove();
    if (end) output.scrollTop = output.scrollHeight;
  });
  feed.addEventListener("quiet", ({ detail: words }) => {
    quiet.replaceChildren(words, el("br"), "What is started with ", el("code", {}, "taskd run -d"), " or ", el("code", {}, 'output="log"'), " keeps what it writes.");
  });
  feed.addEventListener("calls", ({ detail: calls }) => life.tell(calls));
  feed.addEventListener("deaf", ({ detail: words }) => life.deaf(words));
  feed.addEventListener("processes", ({ detail: found }) => {
    processes.replaceChildren(...found.map(([pid, command]) => el("tr", {}, el("td", { class: "mono" }, String(pid)), el("td", { class: "mono" }, command))));
  });
  signal.addEventListener("abort", () => feed.close());
  follow(store, ["tasks", "use", "events", "hello"], draw, signal);
  show(shown);
  return [
    el("div", { class: "title" },
      el("a", { href: "#/", class: "back" }, "← Tasks"),
      el("h1", { class: "mono" }, id), badge, buttons),
    el("div", { class: "columns detail" },
      el("aside", { class: "card side", "aria-label": "What it is and uses" },
        used, facts),
      el("section", { class: "card wide", "aria-label": "What is known of it" }, bar, boxes)),
  ];
}
