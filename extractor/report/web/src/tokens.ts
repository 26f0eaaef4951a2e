// Nodes by tokens: a heat map of one prompt, of its pair, or of the difference. A token's head recolours the picture.

import type { PageData, TokenData } from "./data";
import { make, nodeLink, percent, short, signed, tint } from "./elements";
import type { Shown, State } from "./state";
import { deviation, rowOf } from "./values";

export class TokenView {
  private readonly table = document.querySelector<HTMLTableElement>("#heat")!;
  private readonly caption = document.getElementById("pair-answers")!;
  private readonly tokens: TokenData;
  private rows = new Map<string, HTMLTableRowElement>();

  constructor(private readonly data: PageData, private readonly state: State) {
    this.tokens = data.tokens!;
    const select = document.querySelector<HTMLSelectElement>("#pair")!;
    this.tokens.pairs.forEach((pair, i) => select.append(new Option(`${i + 1}: ${this.text(pair.tokens[0])}`, String(i))));
    select.addEventListener("change", () => state.set({ pair: Number(select.value) }));
    for (const button of document.querySelectorAll<HTMLButtonElement>("button[data-shown]")) {
      button.addEventListener("click", () => state.set({ shown: button.dataset.shown as Shown }));
    }
    this.draw();
  }

  draw(): void {
    const { pair, shown } = this.state.choice, found = this.tokens.pairs[pair]!;
    document.querySelector<HTMLSelectElement>("#pair")!.value = String(pair);
    for (const button of document.querySelectorAll<HTMLButtonElement>("button[data-shown]")) button.setAttribute("aria-pressed", String(button.dataset.shown === shown));
    const which = shown === "second" ? 1 : 0;
    this.head(found.tokens[which], found.tokens[1 - which]!);
    this.body();
    this.answers(pair);
    this.mark();
  }

  mark(): void {
    const { node, token } = this.state.choice;
    for (const [id, row] of this.rows) row.classList.toggle("chosen", id === node);
    for (const button of this.table.querySelectorAll<HTMLButtonElement>("thead button")) button.setAttribute("aria-pressed", String(Number(button.dataset.token) === token));
    const note = document.getElementById("token-note")!;
    note.hidden = token === null;
    if (token !== null) note.textContent = `The picture above shows the values at token ${token + 1}.`;
  }

  private text(ids: number[]): string {
    return ids.map(id => this.tokens.texts[id]!).join("").replaceAll("·", " ");
  }

  private head(ids: number[], other: number[]): void {
    const cells = ids.map((id, i) => {
      const button = make("button", ids[i] === other[i] ? "" : "differs", this.tokens.texts[id]!);
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

  private body(): void {
    this.rows = new Map();
    let site = "";
    for (const node of this.data.nodes) {
      const steps = rowOf(this.tokens, this.state.choice, node.id);
      if (!steps) continue;
      const name = make("th", "", nodeLink(node.id));
      name.scope = "row";
      const cells = steps.map(step => {
        const cell = make("td");
        cell.style.background = tint(step);
        cell.title = signed(Number(short(deviation(this.tokens, this.state.choice, node.id, step))));
        return cell;
      });
      const row = make("tr", node.site === site ? "" : "begins", name, ...cells);
      site = node.site;
      this.rows.set(node.id, row);
    }
    this.table.tBodies[0]!.replaceChildren(...this.rows.values());
  }

  private answers(number: number): void {
    const pair = this.tokens.pairs[number]!;
    const lines = pair.tokens.map((ids, i) => {
      const own = this.data.answers.length ? this.data.answers[i]! : this.tokens.texts[pair.answers[i]!]!;
      const right = i ? 1 - pair.first[1] : pair.first[0];
      return make("li", "", make("code", "", this.text(ids), make("mark", "", this.tokens.texts[pair.answers[i]!]!)), ` ${percent(right)} for ${own}`);
    });
    this.caption.replaceChildren(...lines);
  }
}
