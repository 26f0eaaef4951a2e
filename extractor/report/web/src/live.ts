// The panel "Run the circuit": typed prompts, both answers before and after, the list of changed nodes.

import type { Edit } from "./circuit";
import { make, nodeLink, percent } from "./elements";
import type { State } from "./state";
import type { Views } from "./view";

export class LivePanel {
  private readonly panel = document.getElementById("live")!;
  private readonly prompts = [...this.panel.querySelectorAll<HTMLTextAreaElement>("textarea")];
  private readonly changes = document.getElementById("live-edits")!;
  private readonly undo = document.querySelector<HTMLButtonElement>("#live-undo")!;
  private readonly problem = document.getElementById("live-problem")!;

  constructor(private readonly state: State, private readonly views: Views) {
    const { circuit } = views;
    this.panel.hidden = circuit === null;
    if (!circuit) return;
    for (const prompt of this.prompts) {
      prompt.closest("label")!.hidden = !circuit.canType;
      prompt.addEventListener("input", () => state.set({ typed: [this.prompts[0]!.value, this.prompts[1]!.value] }));
    }
    this.undo.addEventListener("click", () => state.set({ typed: null, edits: {} }));
    this.draw();
  }

  draw(): void {
    const { circuit } = this.views;
    if (!circuit) return;
    const { pair, typed, edits } = this.state.choice;
    if (circuit.canType) {
      this.prompts.forEach((prompt, which) => {
        const text = typed ? typed[which]! : circuit.typed(pair, which);
        if (prompt.value !== text) prompt.value = text;
        prompt.rows = Math.min(8, text.split("\n").length);
      });
    }
    this.changes.replaceChildren(...Object.entries(edits).map(([node, edit]) => make("li", "", nodeLink(node), ` ${inWords(edit)}`)));
    this.undo.hidden = !typed && !Object.keys(edits).length;
    this.problem.textContent = this.views.of(this.state.choice).problem ?? "";
  }
}

/** The row of a node's card that changes it. */
export class Switches {
  readonly row: HTMLElement;
  private readonly buttons: [HTMLButtonElement, Edit | undefined][];
  private readonly factor = make("input");
  private readonly output = make("output");
  private readonly answers = make("div", "run-answers");

  /** answer: the first answer in words; '' where answers vary from pair to pair. */
  constructor(private readonly node: string, private readonly answer: string, private readonly state: State, private readonly views: Views) {
    const edits: [string, Edit | undefined][] = [["as computed", undefined], ["off", "off"], ["other prompt’s value", "other"]];
    this.buttons = edits.map(([words, edit]) => [this.button(words, edit), edit]);
    [this.factor.type, this.factor.min, this.factor.max, this.factor.step] = ["range", "-2", "3", "0.25"];
    this.factor.addEventListener("input", () => state.edit(node, Number(this.factor.value) === 1 ? undefined : Number(this.factor.value)));
    const scaled = make("label", "", "times ", this.factor, this.output);
    this.row = make("div", "switches", ...this.buttons.map(([button]) => button), scaled, this.answers);
    this.row.setAttribute("role", "group");
    this.row.setAttribute("aria-label", `What ${node} is in this run`);
    this.update();
  }

  update(): void {
    const now = this.state.choice.edits[this.node], view = this.views.of(this.state.choice), { ids } = view;
    for (const [button, edit] of this.buttons) {
      button.setAttribute("aria-pressed", String(now === edit));
      button.disabled = edit === "other" && ids[0].length !== ids[1].length;
      button.title = button.disabled ? "the prompts have different numbers of tokens" : "";
    }
    const factor = typeof now === "number" ? now : 1;
    if (Number(this.factor.value) !== factor) this.factor.value = String(factor);
    this.output.textContent = String(factor);
    const words = this.answer || view.answers[0];
    const bars = view.first.map((share, i) => [make("span", "", i ? "second prompt" : "first prompt"), answerBar(share, view.plain[i]!, words), make("span", "", percent(share))]);
    this.answers.replaceChildren(...bars.flat(), make("small", "note", `probability of ${words}`));
  }

  private button(words: string, edit: Edit | undefined): HTMLButtonElement {
    const found = make("button", "", words);
    found.type = "button";
    found.addEventListener("click", () => this.state.edit(this.node, edit));
    return found;
  }
}

function inWords(edit: Edit): string {
  if (edit === "off") return "is off: it has its mean";
  return edit === "other" ? "has its value of the other prompt" : `is multiplied by ${edit}`;
}

/** How likely an answer is: a bar, and a mark where it is without the changes. */
export function answerBar(share: number, plain: number, words: string): HTMLElement {
  const filled = make("i"), mark = make("b");
  filled.style.width = `${100 * share}%`;
  mark.style.left = `${100 * plain}%`;
  const bar = make("span", "answer-bar", filled, mark);
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", `${percent(share)} for ${words}, ${percent(plain)} without changes`);
  return bar;
}
