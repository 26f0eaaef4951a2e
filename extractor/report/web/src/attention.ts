// Where each head looks: a triangle of attention for the shown prompt. Pointing at a token lights the tokens that it reads.

import type { Row } from "./data";
import { make, percent } from "./elements";
import type { State } from "./state";
import type { Views } from "./view";

const SVG = "http://www.w3.org/2000/svg", CELL = 14;

export class AttentionView {
  private readonly place = document.getElementById("attention")!;

  constructor(private readonly state: State, private readonly views: Views) {
    this.draw();
  }

  draw(): void {
    const which = this.state.choice.shown === "second" ? 1 : 0, view = this.views.of(this.state.choice);
    const prompt = which ? "second prompt" : "first prompt"; // of a difference the first: patterns are not subtracted
    const figures = Object.entries(view.heads).map(([head, rows]) => this.figure(head, prompt, rows[which], view.texts[which]));
    this.place.replaceChildren(...figures);
  }

  private figure(name: string, prompt: string, rows: Row[], texts: string[]): HTMLElement {
    const [layer, head] = name.split("."), size = CELL * rows.length;
    const words = make("p", "reads note", "Point at a row.");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${size} ${size}`);
    svg.setAttribute("width", String(size));
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Attention of head ${head} of layer ${layer}: rows attend to columns`);
    rows.forEach((row, i) => {
      const line = document.createElementNS(SVG, "g");
      row.forEach((step, j) => line.append(cell(i, j, step)));
      line.addEventListener("pointerenter", () => words.replaceChildren(...reading(texts, row, i)));
      svg.append(line);
    });
    const figure = make("figure", "plot card", make("figcaption", "", `Head ${head} of layer ${layer}, ${prompt}`));
    const last = rows[rows.length - 1]!;
    words.replaceChildren(...reading(texts, last, rows.length - 1));
    figure.append(svg, words);
    return figure;
  }
}

function cell(row: number, column: number, step: number): SVGElement {
  const box = document.createElementNS(SVG, "rect");
  for (const [key, value] of Object.entries({ x: CELL * column, y: CELL * row, width: CELL - 1, height: CELL - 1 })) box.setAttribute(key, String(value));
  box.style.fill = `rgb(var(--above) / ${(0.06 + 0.94 * (step / 255)).toFixed(3)})`;
  return box;
}

/** "token 5 “x” reads:" and the tokens up to it, the stronger the more it attends to them. */
function reading(texts: string[], row: Row, place: number): Node[] {
  const shown = row.map((step, i) => {
    const part = make("code", "token", texts[i]!);
    part.style.background = `rgb(var(--above) / ${(0.4 * (step / 255)).toFixed(3)})`;
    part.title = percent(step / 255);
    return part;
  });
  return [make("b", "", `“${texts[place]}” reads `), ...shown];
}
