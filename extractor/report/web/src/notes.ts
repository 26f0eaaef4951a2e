// Notes on nodes and groups of nodes: kept by the browser for this circuit, and in the page that "Save page with notes" writes.

import { download, make, nodeLink } from "./elements";

export interface Note {
  text: string;
  group: string;
}

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#5b3fa8"]; // of groups, in their order

export class Notes {
  private notes: Record<string, Note> = {};
  private readonly listeners: (() => void)[] = [];
  private readonly saved = document.body.dataset.notes; // by "Save page with notes": such a page has a place of its own in the browser

  /** key: of the circuit; pristine: the page as it was loaded. */
  constructor(private readonly key: string, private readonly nodes: Set<string>, private readonly pristine: string) {
    this.load();
    addEventListener("storage", event => event.key === this.place && this.tell()); // another window of this page
  }

  onChange(listener: () => void): void {
    this.listeners.push(listener);
  }

  of(id: string): Note {
    return this.notes[id] ?? { text: "", group: "" };
  }

  set(id: string, change: Partial<Note>): void {
    this.load(); // what other windows have written since
    this.notes[id] = { ...this.of(id), ...change };
    try {
      localStorage.setItem(this.place, JSON.stringify(this.notes));
    } catch {
      // the browser keeps nothing for files: the notes last as long as the page is open
    }
    for (const listener of this.listeners) listener();
  }

  private tell(): void {
    this.load();
    for (const listener of this.listeners) listener();
  }

  /** What the browser has, else what the page was saved with; else, where the browser keeps nothing, what was written since. */
  private load(): void {
    const stored = this.stored();
    this.notes = stored === undefined ? { ...this.parsed(this.saved), ...this.notes } : this.parsed(stored);
  }

  get written(): [string, Note][] {
    return Object.entries(this.notes).filter(([, note]) => note.text || note.group);
  }

  get groups(): string[] {
    return [...new Set(this.written.map(([, note]) => note.group).filter(Boolean))].sort();
  }

  /** The colour of a node's group; '' where it has none. */
  colour(id: string): string {
    const { group } = this.of(id);
    return group && COLOURS[this.groups.indexOf(group) % COLOURS.length]!;
  }

  /** This page as a file, with the notes in it. */
  save(): void {
    const kept = JSON.stringify(Object.fromEntries(this.written)).replace(/&/g, "&amp;").replace(/"/g, "&quot;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
    const text = this.pristine.replace(/<body[^>]*>/, () => `<body data-notes="${kept}">`);
    download(URL.createObjectURL(new Blob(["<!doctype html>\n", text], { type: "text/html" })), "report-with-notes.html");
  }

  private get place(): string {
    return `extractor notes ${this.key}${this.saved === undefined ? "" : ` ${checksum(this.saved)}`}`;
  }

  private stored(): string | undefined {
    try {
      return localStorage.getItem(this.place) ?? undefined;
    } catch {
      return undefined;
    }
  }

  /** Notes on nodes of this circuit; whatever else the text holds is left out. */
  private parsed(text: string | undefined): Record<string, Note> {
    const found: Record<string, Note> = {};
    try {
      for (const [id, note] of Object.entries(JSON.parse(text ?? "{}") as Record<string, Partial<Note>>)) {
        if (this.nodes.has(id)) found[id] = { text: String(note?.text ?? ""), group: String(note?.group ?? "") };
      }
    } catch {
      // not written by this page
    }
    return found;
  }
}

/** A short number of a text: two saved pages with other notes have other numbers. */
function checksum(text: string): string {
  let found = 2166136261;
  for (const character of text) found = Math.imul(found ^ character.codePointAt(0)!, 16777619);
  return (found >>> 0).toString(16);
}

/** The section with all notes, by group. */
export function bindNotes(notes: Notes): void {
  const list = document.getElementById("note-list")!, save = document.querySelector<HTMLButtonElement>("#save-notes")!;
  const draw = () => {
    const rows = notes.written.sort(([, a], [, b]) => a.group.localeCompare(b.group));
    list.replaceChildren(
      ...rows.map(([id, note]) => {
        const row = make("li", "", nodeLink(id), note.group && make("b", "", ` ${note.group} `), note.text && make("span", "", ` ${note.text}`));
        row.style.borderColor = notes.colour(id);
        return row;
      }),
    );
    save.disabled = !rows.length;
  };
  save.addEventListener("click", () => notes.save());
  notes.onChange(draw);
  draw();
}

/** The part of a node's card that its note is written in. */
export function noteFields(id: string, notes: Notes): HTMLElement {
  const { text, group } = notes.of(id);
  const area = make("textarea"), name = make("input"), known = make("datalist", "", ...notes.groups.map(one => make("option", "", one)));
  area.value = text;
  area.rows = 2;
  area.maxLength = 2000;
  name.value = group;
  name.maxLength = 40;
  known.id = "groups";
  name.setAttribute("list", known.id);
  area.dataset.note = name.dataset.group = id;
  area.addEventListener("input", () => notes.set(id, { text: area.value }));
  name.addEventListener("input", () => notes.set(id, { group: name.value.trim() }));
  return make("div", "note-fields", make("label", "", "Note ", area), make("label", "", "Group ", name), known);
}

/** After another window has written: the fields show it, unless the reader writes in them here. */
export function refreshFields(notes: Notes): void {
  for (const field of document.querySelectorAll<HTMLTextAreaElement | HTMLInputElement>(".note-fields textarea, .note-fields input")) {
    const { note, group } = field.dataset, now = note ? notes.of(note).text : notes.of(group!).group;
    if (field.value !== now && !(document.hasFocus() && document.activeElement === field)) field.value = now;
  }
}
