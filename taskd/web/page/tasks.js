// All tasks, in a table.

import { ask } from "./act.js";
import { el, say } from "./dom.js";
import { Graph } from "./graph.js";
import { follow } from "./store.js";
import { age, bytes, percent, state } from "./words.js";

const MEBIBYTE = 1 << 20;
const COLUMNS = [
  ["name", "Task"], ["state", "State"], ["cpu", "CPU"], ["memory", "Memory"],
  ["pid", "PID"], ["age", "Age"], ["shim", "Shim"],
];
const chosen = { order: "age", down: false, words: "" };

export function tasks(store, signal) {
  const rows = new Map();
  const body = el("tbody");
  const filter = el("input", {
    type: "search", id: "filter", placeholder: "Filter", "aria-label": "Filter tasks by words", value: chosen.words,
    oninput: () => {
      chosen.words = filter.value;
      draw();
    },
  });
  const heads = COLUMNS.map(([name, title]) => el("th", { scope: "col", class: name },
    el("button", { type: "button", onclick: () => sort(name) }, title)));
  const table = el("table", { class: "tasks", "aria-label": "Tasks" }, el("thead", {}, el("tr", {}, heads)), body);
  const count = el("span", { class: "soft" });
  const empty = el("div", { class: "empty", hidden: true });
  table.addEventListener("keydown", (event) => keys(event));

  function sort(name) {
    chosen.down = chosen.order === name ? !chosen.down : ["cpu", "memory"].includes(name);
    chosen.order = name;
    draw();
  }

  function keys(event) {
    const row = event.target.closest("tbody tr");
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const task = store.tasks.get(row.dataset.id);
    const act = { p: task?.status === "paused" ? "resume" : "pause", t: "stop", k: "kill" }[event.key];
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (act) ask(store, task, act);
    else if (step) row[step]?.querySelector("a").focus();
    else return;
    event.preventDefault();
  }

  function key(task) {
    const use = store.use.get(task.id) ?? [];
    switch (chosen.order) {
      case "cpu": return use[0] ?? -1;
      case "memory": return use[1] ?? -1;
      case "state": return task.status;
      case "pid": return task.pid;
      case "age": return -task.created;
      case "shim": return `${task.runtime} ${task.shim}`;
      default: return task.id;
    }
  }

  function draw() {
    const words = chosen.words.toLowerCase().split(/\s+/);
    const found = [...store.tasks.values()].filter((task) => {
      const about = `${task.id} ${task.image} ${task.command} ${state(task).word}`.toLowerCase();
      return words.every((word) => about.includes(word));
    });
    const keyed = found.map((task) => [key(task), task]);
    keyed.sort(([a, one], [b, other]) => (a < b ? -1 : a > b ? 1 : one.id < other.id ? -1 : 1));
    if (chosen.down) keyed.reverse();
    for (const id of rows.keys()) {
      if (!store.tasks.has(id)) {
        rows.get(id).element.remove();
        rows.delete(id);
      }
    }
    keyed.forEach(([, task], place) => {
      if (!rows.has(task.id)) rows.set(task.id, new Row(task));
      const row = rows.get(task.id);
      row.show(task, store);
      if (body.children[place] !== row.element) move(row.element, place);
    });
    while (body.children.length > keyed.length) body.lastElementChild.remove();
    heads.forEach((head, index) => {
      const here = COLUMNS[index][0] === chosen.order;
      if (here) head.setAttribute("aria-sort", chosen.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const all = store.tasks.size;
    say(count, found.length === all ? `${all}` : `${found.length} of ${all}`);
    table.hidden = !found.length;
    empty.hidden = Boolean(found.length);
    if (!found.length) nothing();
  }

  // Where what moves has the focus, it keeps it.
  function move(element, place) {
    const focused = document.activeElement;
    body.insertBefore(element, body.children[place] ?? null);
    if (element.contains(focused)) focused.focus();
  }

  function nothing() {
    if (!store.begun) {
      empty.replaceChildren(el("p", {}, "Asking the daemon…"));
    } else if (store.tasks.size) {
      empty.replaceChildren(el("p", {}, "No task has all of these words."));
    } else {
      const { namespace, others } = store.hello ?? { namespace: "default", others: [] };
      const where = namespace === "default" ? "" : ` --namespace ${namespace}`;
      empty.replaceChildren(...[
        el("h3", {}, "Nothing runs here yet"),
        el("p", {}, "Start a container, and it appears by itself:"),
        el("pre", {}, `taskd run${where} -d --name hello ./rootfs sleep 1000`),
        others.length && el("p", {}, `This is namespace ${namespace}. There are others as well: ${others.join(", ")} (taskd ui -n NAME).`),
      ].filter(Boolean));
    }
  }

  follow(store, ["tasks", "use", "hello"], draw, signal);
  const timer = setInterval(() => rows.forEach((row) => row.tick()), 1000);
  signal.addEventListener("abort", () => clearInterval(timer));
  return el("section", { class: "card wide", "aria-labelledby": "tasks-title" },
    el("div", { class: "head" }, el("h2", { id: "tasks-title" }, "Tasks "), count, filter), table, empty);
}

class Row {
  constructor(task) {
    this.created = task.created;
    this.cpu = new Graph();
    this.memory = new Graph();
    this.cells = Object.fromEntries(["image", "state", "pid", "age", "runtime", "shim", "share", "size", "limit"].map((name) => [name, el("span", { class: name })]));
    const { image, state: word, pid, age: old, runtime, shim, share, size, limit } = this.cells;
    this.element = el("tr", { "data-id": task.id },
      el("td", { class: "name" }, el("a", { href: `#/task/${encodeURIComponent(task.id)}`, class: "mono" }, task.id), image),
      el("td", { class: "state" }, word),
      el("td", { class: "cpu" }, share, this.cpu.element),
      el("td", { class: "memory" }, el("span", { class: "both" }, size, limit), this.memory.element),
      el("td", { class: "pid mono" }, pid),
      el("td", { class: "age" }, old),
      el("td", { class: "shim" }, runtime, shim));
    this.element.addEventListener("click", (event) => {
      if (!event.target.closest("a")) this.element.querySelector("a").click();
    });
  }

  show(task, store) {
    const { image, state: word, pid, runtime, shim, share, size, limit } = this.cells;
    const { word: said, kind } = state(task);
    say(image, task.command || task.image);
    image.title = `${task.image}\n${task.command}`;
    say(word, said);
    word.className = `badge ${kind}`;
    say(pid, task.pid ? String(task.pid) : "");
    say(runtime, task.runtime.replace(/^io\.(containerd|taskd)\./, ""));
    say(shim, task.shim ? `pid ${task.shim}` : "");
    const runs = task.status === "running" || task.status === "paused";
    const use = runs ? store.use.get(task.id) : undefined;
    const past = (runs && store.past.get(task.id)) || { cpu: [], memory: [] };
    say(share, use ? percent(use[0]) : "");
    say(size, use ? bytes(use[1]) : "");
    say(limit, use?.[2] ? `of ${bytes(use[2])}` : "");
    this.cpu.show(past.cpu, 0.1, `CPU ${share.textContent}, and in the last two minutes`);
    this.memory.show(past.memory, MEBIBYTE, `Memory ${size.textContent}, and in the last two minutes`);
    this.tick();
  }

  tick() {
    say(this.cells.age, age(this.created));
  }
}
