// Exits a second by kind over the last minute, as stacked bars.

const SECONDS = 60;
// Told apart by people who see few colours, on light and on dark paper (Okabe and Ito's palette).
const COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#b8a800", "#8c8c8c"];

export const shown = (number) =>
  number >= 1e6 ? `${(number / 1e6).toFixed(1)}M` : number >= 1e4 ? `${(number / 1e3).toFixed(0)}k`
    : number >= 1e3 ? `${(number / 1e3).toFixed(1)}k` : number.toFixed(number < 10 && number % 1 ? 1 : 0);

export class Chart {
  // canvas, legend: elements; peak: is told what the highest bar means.
  constructor(canvas, legend, peak) {
    this.canvas = canvas;
    this.legend = legend;
    this.peak = peak;
    this.columns = [];
    this.kinds = [];                    // in the order in which they were first seen: a colour stays with its kind
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  colour(kind) {
    return COLOURS[Math.min(this.kinds.indexOf(kind), COLOURS.length - 1)];
  }

  add(rates) {
    for (const kind of Object.keys(rates)) if (!this.kinds.includes(kind)) this.kinds.push(kind);
    this.columns.push(rates);
    if (this.columns.length > SECONDS) this.columns.shift();
    this.legend.replaceChildren(...this.kinds.map((kind) => {
      const item = document.createElement("li"), mark = document.createElement("i");
      mark.style.background = this.colour(kind);
      item.append(mark, `${kind} ${shown(rates[kind] || 0)}`);
      return item;
    }));
    this.draw();
  }

  clear() {
    this.columns = [];
    this.draw();
  }

  draw() {
    const scale = window.devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = this.canvas;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    const paper = this.canvas.getContext("2d");
    paper.scale(scale, scale);
    const sums = this.columns.map((rates) => Object.values(rates).reduce((sum, rate) => sum + rate, 0));
    const most = Math.max(1, ...sums), step = width / SECONDS;
    this.peak.textContent = this.columns.length ? `peak ${shown(most)}` : "";
    this.columns.forEach((rates, index) => {
      let top = height;
      for (const kind of this.kinds) {
        const part = (rates[kind] || 0) / most * (height - 4);
        paper.fillStyle = this.colour(kind);
        paper.fillRect(width - (this.columns.length - index) * step, top - part, Math.max(step - 1, 1), part);
        top -= part;
      }
    });
  }
}
