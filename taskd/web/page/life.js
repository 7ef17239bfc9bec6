// The calls of a container's life as a sequence diagram: client, taskd, shim.

import { el } from "./dom.js";
import { clock, exit, span } from "./words.js";

const LANES = ["client", "taskd", "shim"];
const WAYS = { CLIENT: [0, 1], TO_SHIM: [1, 2], FROM_SHIM: [2, 1], COMMAND: [1, 2] };
const PAUSE = 1000; // milliseconds of silence that are worth a line
const MAIN = ["Create", "Start", "Kill", "Delete", "Exec", "Checkpoint"];

export class Life {
  constructor() {
    this.calls = new Map();
    this.trouble = null;
    this.chosen = null;
    this.events = [];
    this.due = false;
    this.steps = el("div", { class: "steps" });
    this.about = el("div", { class: "about", hidden: true });
    this.note = el("p", { class: "empty" });
    this.element = el("div", { class: "life" },
      el("div", { class: "lanes", "aria-hidden": "true" }, el("span"), el("div", {}, LANES.map((each) => el("b", {}, each))), el("span")),
      this.steps, this.note, this.about);
    this.draw();
  }

  tell(calls) {
    for (const call of calls) this.calls.set(call.number, call);
    this.soon();
  }

  deaf(words) {
    this.trouble = words;
    this.soon();
  }

  // What the journal has of the time before the calls were heard.
  since(events) {
    const before = events.map((each) => each.at).join();
    if (before === this.before) return;
    this.before = before;
    this.events = events;
    this.soon();
  }

  soon() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      this.draw();
    });
  }

  draw() {
    const focused = this.steps.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const steps = this.order();
    const begin = steps.length ? steps[0].at : 0;
    const busy = [0, 0, 0];
    let before = begin;
    const rows = [];
    for (const step of steps) {
      if (step.at - before > PAUSE) rows.push(gap(step.at - before, busy));
      before = step.at;
      rows.push(this.row(step, step.at - begin, busy));
    }
    this.steps.replaceChildren(...rows);
    if (focused) this.steps.querySelector(`[data-key="${focused}"]`)?.focus();
    this.element.querySelector(".lanes").hidden = !rows.length;
    this.note.hidden = Boolean(this.calls.size);
    this.note.textContent = this.trouble
      || "No call has been heard yet. They are from when taskd ui was started; begin a container now, and its life is here from the start.";
  }

  // Beginnings and ends by time; an end that nothing comes before is told with its beginning.
  order() {
    const calls = [...this.calls.values()];
    const heard = Math.min(...calls.map((each) => each.begin));
    const moments = this.events.filter((each) => each.at < heard).map((event) => ({ at: event.at, event, key: `e${event.at}` }));
    for (const call of calls) {
      moments.push({ at: call.begin, call, begins: true, key: `b${call.number}` });
      // What a shim tells of is an event: that it was heard is no step of the life.
      if (call.took !== null && call.way !== "FROM_SHIM") moments.push({ at: call.begin + call.took, call, ends: true, key: `e${call.number}` });
    }
    moments.sort((a, b) => a.at - b.at || (a.begins ? -1 : 1));
    const merged = [];
    for (let index = 0; index < moments.length; index++) {
      const [one, next] = [moments[index], moments[index + 1]];
      if (one.begins && next?.ends && next.call === one.call) {
        merged.push({ ...one, ends: true });
        index++;
      } else merged.push(one);
    }
    return merged;
  }

  row(step, after, busy) {
    const { call, begins, ends } = step;
    const [from, to] = call ? WAYS[call.way] : [2, 1];
    const [left, right] = begins || !call ? [from, to] : [to, from];
    const label = call ? words(call, begins, ends) : step.event.topic.replace(/^\/tasks\//, "event ");
    const waits = call?.method === "Wait";
    const works = call && !waits && call.way !== "FROM_SHIM";
    if (works && begins) busy[to]++;
    const active = [...busy];
    if (works && ends) busy[to]--;
    const took = call && ends ? span(call.took) : call?.took === null ? "goes on" : "";
    const failed = Boolean(call?.error || call?.code);
    const kind = [
      "step", left < right ? "right" : "left", Math.min(left, right) ? "far" : "near",
      call && ends && !begins ? "back" : "", waits ? "waits" : "", failed && ends ? "failed" : "",
      call && MAIN.includes(call.method) && begins ? "main" : "", this.chosen === call?.number && call ? "chosen" : "",
    ].join(" ");
    const said = `${LANES[left]} to ${LANES[right]}: ${label}${took ? `, ${took}` : ""}`;
    return el("button", {
      type: "button", class: kind, "data-key": step.key, "aria-label": said, disabled: !call,
      onclick: () => this.choose(call),
    },
    el("time", {}, after < 1 ? "0" : `+${span(after)}`),
    el("span", { class: "lane" }, active.map((each, lane) => each > 0 && el("i", { class: `bar b${lane}` })),
      el("span", { class: "arrow" }, el("span", { class: "label" }, label))),
    el("span", { class: "took" }, took));
  }

  choose(call) {
    this.chosen = this.chosen === call.number ? null : call.number;
    this.about.hidden = this.chosen === null;
    const part = (title, text) => text && text !== "{}" ? [el("h4", {}, title), el("pre", {}, pretty(text))] : [];
    this.about.replaceChildren(
      el("h3", {}, `${call.service ? `${call.service}/` : "$ shim "}${call.method}`),
      el("p", { class: "soft" }, `${clock(call.begin)}, ${call.took === null ? "goes on" : `took ${span(call.took)}`}`),
      ...part("Request", call.request),
      ...(call.error ? part(`Error ${call.code ?? ""}`, call.error) : part("Answer", call.answer)));
    this.draw();
    if (this.chosen !== null) this.about.scrollIntoView({ block: "nearest" });
  }
}

function words(call, begins, ends) {
  const answer = parsed(call.answer);
  let name = call.method;
  if (call.way === "COMMAND") name = `$ shim ${call.method}`;
  if (call.method === "Forward") name = parsed(call.request)?.envelope?.topic?.replace(/^\/tasks\//, "event ") ?? "event";
  if (begins && !ends) return name;
  if (call.error || call.code) return `${name}: ${call.code || call.error}`;
  if (ends && ["Wait", "Delete"].includes(call.method)) return `${name}: exited ${exit(answer?.exit_status)}`;
  if (ends && ["Create", "Start"].includes(call.method) && answer?.pid) return `${name}: pid ${answer.pid}`;
  return name;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function pretty(text) {
  const found = parsed(text);
  return found === null ? text : JSON.stringify(found, null, 2);
}

function gap(milliseconds, busy) {
  return el("div", { class: "gap" }, el("span"),
    el("span", { class: "lane" }, busy.map((each, lane) => each > 0 && el("i", { class: `bar b${lane}` })), el("span", { class: "label" }, span(milliseconds))), el("span"));
}
