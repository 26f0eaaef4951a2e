"""The committed script of the page is the one that its sources give."""

from __future__ import annotations

import hashlib
import json

from worlds import ROOT

WEB = ROOT / "extractor" / "report" / "web"


def test_the_script_was_built_from_these_sources():
    """`npm run build` writes the digest of src/*.ts, in the order of their names, into the first line."""
    text = b"".join(path.read_bytes() for path in sorted((WEB / "src").glob("*.ts")))
    first = (WEB / "page.js").read_text(encoding="utf-8").splitlines()[0]
    assert first.endswith(f"SHA-256 {hashlib.sha256(text).hexdigest()[:16]}"), "run `npm ci && npm run build` in extractor/report/web"


def test_the_script_is_small_and_its_tools_are_pinned():
    assert (WEB / "page.js").stat().st_size < 90_000
    package = json.loads((WEB / "package.json").read_text(encoding="utf-8"))
    assert package["dependencies"] == {"@huggingface/tokenizers": "0.2.0"}  # all of others that is in the page
    assert all(version[0].isdigit() for version in package["devDependencies"].values())
