"""A page without a script, in the style of the reports: the tasks of a job, two circuits compared, the first page of `extract view`."""

from __future__ import annotations

from importlib import resources
from string import Template
from urllib.parse import quote

from extractor.report.html import plain


def plain_page(title: str, eyebrow: str, headline: str, meta: str, body: str) -> str:
    """The text of the page. title and eyebrow are text; headline, meta and body are HTML."""
    return Template(template_file("plain.html")).substitute(
        style=Template(template_file("style.css")).substitute(least_width=0),
        title=plain(title),
        eyebrow=plain(eyebrow),
        headline=headline,
        meta=meta,
        body=body,
    )


def template_file(name: str) -> str:
    """The text of a file of this folder."""
    return resources.files("extractor.report").joinpath(name).read_text(encoding="utf-8")


def report_address(result: str, task: str, node: str = "") -> str:
    """The address of a task's report, with the node's card open. result: the address of the result's folder, without '/' at its end."""
    return f"{result}/circuits/{quote(task, safe='')}/report.html" + (f"#node={quote(node, safe='')}" if node else "")


def node_link(address: str, node: str) -> str:
    """A node's name; with an address, as a link."""
    name = f'<code class="id">{plain(node)}</code>'
    return f'<a href="{plain(address)}">{name}</a>' if address else name
