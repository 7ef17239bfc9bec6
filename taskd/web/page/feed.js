// What the daemon tells. One stream for all tasks, and one for the container that is looked at.
// A page that nobody sees asks for nothing; afterwards it goes on with the event it has seen last.

const RETRY = 2000;

export class Feed extends EventTarget {
  constructor(path, names) {
    super();
    this.path = path;
    this.names = names;
    this.last = "";
    this.source = null;
    this.timer = 0;
    this.look = () => (document.hidden ? this.pause() : this.open());
    document.addEventListener("visibilitychange", this.look);
    this.look();
  }

  open() {
    if (this.source) return;
    const source = new EventSource(this.last ? `${this.path}?after=${encodeURIComponent(this.last)}` : this.path);
    this.source = source;
    source.onopen = () => this.tell("open");
    source.onerror = () => {
      this.tell("lost", { refused: source.readyState === EventSource.CLOSED });
      if (source.readyState !== EventSource.CLOSED) return;
      this.pause();
      this.timer = setTimeout(() => document.hidden || this.open(), RETRY);
    };
    for (const name of this.names) {
      source.addEventListener(name, (event) => {
        if (event.lastEventId) this.last = event.lastEventId;
        this.tell(name, JSON.parse(event.data));
      });
    }
  }

  pause() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  close() {
    this.pause();
    document.removeEventListener("visibilitychange", this.look);
  }

  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
