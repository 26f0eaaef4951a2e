// What lies before and after a node in a drawn circuit: through edges, the residual stream, and attention.

type Arrow = [source: string, target: string]; // '': the input, the answers

export class Paths {
  /** arrows: edges and streams of the drawn circuit; heads: of its queries, keys and values, as 'layer.head'. */
  constructor(private readonly arrows: Arrow[], heads: Map<string, string>) {
    const values = [...heads].filter(([id]) => id.split(".")[2] === "v").map(([id]) => id);
    for (const [id, head] of heads) {
      if (id.split(".")[2] === "v") continue; // a query or a key: it acts on what its head writes, and on no value
      for (const value of values) if (heads.get(value) === head) arrows.push(...arrows.filter(([source]) => source === value).map(([, target]): Arrow => [id, target]));
    }
  }

  /** With the node itself, and '' where the input is reached. */
  before(id: string): Set<string> {
    return this.reached(id, 1, 0);
  }

  /** With the node itself, and '' where the answers are reached. */
  after(id: string): Set<string> {
    return this.reached(id, 0, 1);
  }

  private reached(id: string, from: 0 | 1, to: 0 | 1): Set<string> {
    const found = new Set([id]), waiting = [id];
    for (let one = waiting.pop(); one !== undefined; one = waiting.pop()) {
      for (const arrow of one ? this.arrows : []) {
        if (arrow[from] !== one || found.has(arrow[to])) continue;
        found.add(arrow[to]);
        waiting.push(arrow[to]);
      }
    }
    return found;
  }
}
