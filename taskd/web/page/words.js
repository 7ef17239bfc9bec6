// Numbers and states in words.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const SIGNALS = { 1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM" };

export function bytes(number) {
  if (number === null || number === undefined) return "–";
  let unit = 0;
  while (number >= 1024 && unit < UNITS.length - 1) {
    number /= 1024;
    unit++;
  }
  return `${unit && number < 100 ? number.toFixed(1) : Math.round(number)} ${UNITS[unit]}`;
}

export function percent(share) {
  if (share === null || share === undefined) return "–";
  return `${share < 0.0995 ? (100 * share).toFixed(1) : Math.round(100 * share)} %`;
}

export function span(milliseconds) {
  const seconds = milliseconds / 1000;
  if (seconds < 0.001) return `${(1000 * milliseconds).toFixed(0)} µs`;
  if (seconds < 1) return `${milliseconds < 100 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  const days = Math.floor(seconds / 86400);
  return `${days} day${days === 1 ? "" : "s"}`;
}

export function age(since) {
  return span(Math.max(1000, Math.floor((Date.now() - since) / 1000) * 1000)).replace(".0", "");
}

export function clock(at) {
  return new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

export function exit(code) {
  if (code === null || code === undefined || code === 0) return "0";
  return SIGNALS[code - 128] ? `${code}, ${SIGNALS[code - 128]}` : `${code}`;
}

// A state: its word, and the kind that colours follow.
export function state(task) {
  if (task.status !== "exited") return { word: task.status, kind: task.status };
  return task.code ? { word: `exited ${task.code}`, kind: "failed" } : { word: "exited 0", kind: "exited" };
}

const TOPICS = {
  "/containers/create": "container made",
  "/containers/update": "container changed",
  "/containers/delete": "container removed",
  "/tasks/create": "created",
  "/tasks/start": "started",
  "/tasks/delete": "task deleted",
  "/tasks/paused": "paused",
  "/tasks/resumed": "resumed",
  "/tasks/checkpointed": "checkpointed",
  "/tasks/exec-added": "process added",
  "/tasks/exec-started": "process started",
  "/tasks/oom": "out of memory",
};

// What an event says, and the kind that colours and filters follow.
export function happened(event) {
  const own = event.exec ? `process ${event.exec} ` : "";
  if (event.topic === "/tasks/exit") {
    const kind = event.code ? "failed" : "exited";
    return { word: `${own}exited ${exit(event.code)}`, kind, exit: true };
  }
  if (event.topic === "/tasks/oom") return { word: TOPICS[event.topic], kind: "oom", exit: true };
  const kinds = { "/tasks/start": "running", "/tasks/resumed": "running", "/tasks/paused": "paused", "/tasks/create": "created" };
  return { word: TOPICS[event.topic] ?? event.topic, kind: kinds[event.topic] ?? "quiet", exit: false };
}
