// Nodes by tokens: a heat map of one prompt, of its pair, or of the difference. A token's head recolours the picture.

import type { PageData, Row } from "./data";
import { answerBar, chance, drawSoon, LATER, make, nodeLink, short, signed, tint, visible } from "./elements";
import type { Shown, State } from "./state";
import { alike, deviation, rowOf, shownOf, UNLIKE, type View, type Views } from "./view";

export class TokenView {
  private readonly table = document.querySelector<HTMLTableElement>("#heat")!;
  private readonly caption = document.getElementById("pair-answers")!;
  private rows = new Map<string, HTMLTableRowElement>();
  private filled = new Map<string, Row>(); // the steps that a row shows
  private readonly outside = new WeakSet<HTMLTableRowElement>(); // rows that the browser does not draw
  private drawn = ""; // the tokens of the table
  private later: ReturnType<typeof setTimeout> | undefined; // writes the numbers

  constructor(private readonly data: PageData, private readonly state: State, private readonly views: Views) {
    const { pairs, texts } = data.tokens!;
    const select = document.querySelector<HTMLSelectElement>("#pair")!;
    pairs.forEach((pair, i) => select.append(new Option(`${i + 1}: ${joined(pair.tokens[0].map(id => texts[id]!))}`, String(i))));
    select.addEventListener("change", () => state.set({ pair: Number(select.value) }));
    for (const button of document.querySelectorAll<HTMLButtonElement>("button[data-shown]")) {
      button.addEventListener("click", () => state.set({ shown: button.dataset.shown as Shown }));
    }
    this.draw();
  }

  draw(): void {
    const { pair } = this.state.choice, view = this.views.of(this.state.choice), same = alike(view), shown = shownOf(view, this.state.choice);
    document.querySelector<HTMLSelectElement>("#pair")!.value = String(pair);
    for (const button of document.querySelectorAll<HTMLButtonElement>("button[data-shown]")) button.setAttribute("aria-pressed", String(button.dataset.shown === shown));
    const difference = document.querySelector<HTMLButtonElement>('button[data-shown="difference"]')!;
    difference.disabled = !same;
    difference.title = same ? "" : UNLIKE;
    const which = shown === "second" ? 1 : 0;
    this.answers(view);
    const tokens = JSON.stringify([view.ids, shown]);
    if (tokens === this.drawn) return drawSoon(this.table, () => this.fill(this.views.of(this.state.choice)));
    this.drawn = tokens;
    this.head(view, which);
    this.body(view);
    this.fill(view);
    this.mark();
  }

  mark(): void {
    const { node, token } = this.state.choice;
    for (const [id, row] of this.rows) {
      row.classList.toggle("chosen", id === node);
      row.classList.toggle("changed-here", id in this.state.choice.edits);
    }
    for (const button of this.table.querySelectorAll<HTMLButtonElement>("thead button")) button.setAttribute("aria-pressed", String(Number(button.dataset.token) === token));
  }

  private head(view: View, which: 0 | 1): void {
    const cells = view.texts[which].map((text, i) => {
      const button = make("button", view.ids[0][i] === view.ids[1][i] ? "" : "differs", text);
      button.type = "button";
      button.dataset.token = String(i);
      button.title = `token ${i + 1}: colour the picture by the values here`;
      button.addEventListener("click", () => this.state.set({ token: this.state.choice.token === i ? null : i }));
      const cell = make("th", "", button);
      cell.scope = "col";
      return cell;
    });
    const corner = make("th", "", "node");
    corner.scope = "col";
    this.table.tHead!.replaceChildren(make("tr", "", corner, ...cells));
  }

  private body(view: View): void {
    this.rows = new Map();
    this.filled = new Map();
    let site = "";
    for (const node of this.data.nodes) {
      const length = rowOf(view, this.state.choice, node.id)?.length;
      if (!length) continue;
      const name = make("th", "", nodeLink(node.id));
      name.scope = "row";
      const row = make("tr", node.site === site ? "" : "begins", name, ...Array.from({ length }, () => make("td")));
      row.addEventListener("contentvisibilityautostatechange", event => ((event as ContentVisibilityAutoStateChangeEvent).skipped ? this.outside.add(row) : this.outside.delete(row)));
      site = node.site;
      this.rows.set(node.id, row);
    }
    this.table.style.setProperty("--names", `${0.47 * Math.max(0, ...[...this.rows.keys()].map(id => id.length)) + 1}rem`);
    this.table.style.setProperty("--tokens", String(Math.max(0, ...[...this.rows.values()].map(row => row.cells.length - 1))));
    this.table.tBodies[0]!.replaceChildren(...this.rows.values());
  }

  /** Colour the cells that change; rows outside the window and the numbers of rows that were filled before follow after the next frames. */
  private fill(view: View): void {
    clearTimeout(this.later);
    const fresh = !this.filled.size, rest: [string, HTMLTableRowElement][] = [];
    for (const [id, row] of this.rows) fresh || !this.outside.has(row) ? this.colour(id, row, view) : rest.push([id, row]);
    const finish = () => {
      for (const [id, row] of rest) this.colour(id, row, view);
      this.number();
    };
    if (fresh) finish();
    else this.later = setTimeout(finish, LATER);
  }

  private colour(id: string, row: HTMLTableRowElement, view: View): void {
    const steps = rowOf(view, this.state.choice, id)!, before = this.filled.get(id), cells = row.cells;
    steps.forEach((step, i) => {
      if (!before || Math.round(before[i]!) !== Math.round(step)) cells[i + 1]!.style.background = tint(Math.round(step));
    });
    this.filled.set(id, steps);
  }

  private number(): void {
    const { choice } = this.state, shown = shownOf(this.views.of(choice), choice);
    for (const [id, row] of this.rows) {
      const scale = this.data.tokens!.nodes[id]!.scale, cells = row.cells;
      this.filled.get(id)!.forEach((step, i) => (cells[i + 1]!.title = signed(Number(short(deviation(scale, shown, step))))));
    }
  }

  private answers(view: View): void {
    const [one, two] = [0, 1].map(i => visible(this.data.answers[i] ?? "") || view.answers[i]!), { typed } = this.state.choice;
    const lines = view.prompts.map((text, i) => {
      const own = !typed || view.problems[i] !== null; // of the pair: its right answer is known
      const now = view.first[i]!, plain = view.plain[i]!;
      const before = Math.abs(now - plain) > 0.0005 ? `, without the changes ${chance(plain)} ${one}` : "";
      const wrong = own && now < 0.5 === (i === 0) ? ": wrong" : "";
      const prompt = make("code", "", text.replaceAll("·", " "), own ? make("mark", "", view.answers[i]!) : null);
      return make("li", "", prompt, " ", answerBar(now, plain, one!), ` ${chance(now)} ${one}, ${chance(1 - now)} ${two}${wrong}${before}`);
    });
    this.caption.replaceChildren(...lines);
  }
}

const joined = (texts: string[]): string => texts.join("").replaceAll("·", " ");
