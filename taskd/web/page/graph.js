// Small graphs: a line, and the area below it.

import { svg } from "./dom.js";

const WIDTH = 120;

export class Graph {
  constructor(height = 24) {
    this.height = height;
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line" });
    this.element = svg("svg", {
      class: "graph", viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", role: "img",
    }, this.area, this.line);
  }

  // `values` are the last ones, one a second; `least` is what the top stands for at the least.
  show(values, least, label) {
    this.element.setAttribute("aria-label", label);
    const known = values.filter((each) => each !== null && each !== undefined);
    if (known.length < 2) {
      this.line.setAttribute("d", "");
      this.area.setAttribute("d", "");
      return;
    }
    const top = Math.max(least, ...known) * 1.15;
    const begin = WIDTH - values.length;
    let path = "";
    let first = null;
    let last = null;
    values.forEach((value, index) => {
      if (value === null || value === undefined) return;
      const x = begin + index + 1;
      const y = (this.height - 1 - (this.height - 2) * (value / top)).toFixed(2);
      path += `${path ? "L" : "M"}${x} ${y}`;
      first ??= x;
      last = x;
    });
    this.line.setAttribute("d", path);
    this.area.setAttribute("d", `${path}L${last} ${this.height}L${first} ${this.height}Z`);
  }
}
