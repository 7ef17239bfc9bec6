// All that the page knows of the daemon, and who wants to hear of it.

import { Feed } from "./feed.js";

const SAMPLES = 120;
const EVENTS = 500;

export class Store extends EventTarget {
  constructor() {
    super();
    this.hello = null;
    this.tasks = new Map();
    this.use = new Map(); // [cpu, memory, limit, pids, io] by id
    this.past = new Map(); // {cpu: [...], memory: [...]} by id
    this.events = [];
    this.begun = false;
    this.journal = true;
    this.trouble = "";
    this.link = "connecting";
    this.feed = new Feed("/feed", ["hello", "past", "tasks", "use", "trouble", "anew", "live", "happened"]);
    for (const name of ["hello", "past", "tasks", "use", "trouble", "anew", "live", "happened"]) {
      this.feed.addEventListener(name, (event) => this[`on_${name}`](event.detail));
    }
    this.feed.addEventListener("open", () => this.set("link", "live"));
    this.feed.addEventListener("lost", ({ detail }) => this.set("link", detail.refused ? "refused" : "lost"));
  }

  set(name, value) {
    this[name] = value;
    this.dispatchEvent(new Event(name));
  }

  on_hello(found) {
    this.set("hello", found);
  }

  on_past(found) {
    this.past = new Map(Object.entries(found).map(([id, samples]) => [
      id, { cpu: samples.map((each) => each[0]), memory: samples.map((each) => each[1]) },
    ]));
  }

  on_tasks(found) {
    this.tasks = new Map(found.map((each) => [each.id, each]));
    this.begun = true;
    for (const id of this.past.keys()) if (!this.tasks.has(id)) this.past.delete(id);
    this.dispatchEvent(new Event("tasks"));
  }

  on_use(found) {
    this.use = new Map(Object.entries(found.use));
    for (const [id, [cpu, memory]] of this.use) {
      if (!this.past.has(id)) this.past.set(id, { cpu: [], memory: [] });
      const past = this.past.get(id);
      past.cpu.push(cpu);
      past.memory.push(memory);
      if (past.cpu.length > SAMPLES) {
        past.cpu.shift();
        past.memory.shift();
      }
    }
    this.dispatchEvent(new Event("use"));
  }

  on_trouble(words) {
    this.set("trouble", words);
  }

  on_anew() {
    this.set("events", []);
  }

  on_live() {
    this.journal = false;
    this.dispatchEvent(new Event("events"));
  }

  on_happened(event) {
    this.events.unshift(event);
    if (this.events.length > EVENTS) this.events.pop();
    this.dispatchEvent(new Event("events"));
  }
}

// Call `draw` for any of these events, once for all that come together.
export function follow(store, names, draw, signal) {
  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      if (!signal?.aborted) draw();
    });
  };
  for (const name of names) store.addEventListener(name, soon, { signal });
  draw();
}
