// The panel "Run the circuit": typed prompts, both answers before and after, the list of changed nodes.

import type { Edit } from "./circuit";
import { answerBar, chance, make, nodeLink } from "./elements";
import type { State } from "./state";
import { alike, UNLIKE, type Views } from "./view";

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
      prompt.addEventListener("input", () => {
        const typed: [string, string] = [this.prompts[0]!.value, this.prompts[1]!.value], { pair } = state.choice;
        state.set({ typed: typed.every((text, which) => text === circuit.typed(pair, which)) ? null : typed });
      });
    }
    this.undo.addEventListener("click", () => {
      state.set({ typed: null, edits: {} });
      this.prompts[0]!.focus();
    });
    this.draw();
  }

  draw(): void {
    const { circuit } = this.views;
    if (!circuit) return;
    const { pair, typed, edits } = this.state.choice, view = this.views.of(this.state.choice);
    if (circuit.canType) {
      this.prompts.forEach((prompt, which) => {
        const text = typed ? typed[which]! : circuit.typed(pair, which);
        if (prompt.value !== text) prompt.value = text;
        prompt.rows = Math.min(8, text.split("\n").length);
        prompt.setAttribute("aria-invalid", String(view.problems[which] !== null));
      });
    }
    this.changes.replaceChildren(...Object.entries(edits).map(([node, edit]) => make("li", "", nodeLink(node), ` ${inWords(edit, alike(view))} `, this.remover(node))));
    this.undo.hidden = !typed && !Object.keys(edits).length;
    const words = view.problems.map((problem, which) => problem && `${which ? "Second" : "First"} prompt: ${problem} In its place that of the pair is shown.`);
    this.problem.textContent = words.filter(word => word !== null).join(" ");
  }

  private remover(node: string): HTMLElement {
    const button = make("button", "close", "×");
    button.type = "button";
    button.setAttribute("aria-label", `Undo the change of ${node}`);
    button.addEventListener("click", () => {
      this.state.edit(node, undefined);
      (this.changes.querySelector("button") ?? this.prompts[0]!).focus({ preventScroll: true }); // the button is gone
    });
    return button;
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
    const now = this.state.choice.edits[this.node], view = this.views.of(this.state.choice);
    for (const [button, edit] of this.buttons) {
      button.setAttribute("aria-pressed", String(now === edit));
      button.disabled = edit === "other" && !alike(view);
      button.title = button.disabled ? UNLIKE : "";
    }
    const factor = typeof now === "number" ? now : 1;
    if (Number(this.factor.value) !== factor) this.factor.value = String(factor);
    this.output.textContent = now === "off" || now === "other" ? "–" : String(factor);
    const words = this.answer || view.answers[0];
    const bars = view.first.map((share, i) => [make("span", "", i ? "second prompt" : "first prompt"), answerBar(share, view.plain[i]!, words), make("span", "", chance(share))]);
    this.answers.replaceChildren(...bars.flat(), make("small", "note", `probability of ${words}`));
  }

  private button(words: string, edit: Edit | undefined): HTMLButtonElement {
    const found = make("button", "", words);
    found.type = "button";
    found.addEventListener("click", () => this.state.edit(this.node, edit));
    return found;
  }
}

function inWords(edit: Edit, exchanges: boolean): string {
  if (edit === "off") return "is off: it has its mean";
  if (edit === "other" && !exchanges) return `is as computed: ${UNLIKE}`;
  return edit === "other" ? "has its value of the other prompt" : `is multiplied by ${edit}`;
}
