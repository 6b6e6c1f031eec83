"""The figures as a table, and some of them as a chart."""

import html
import json
import os
import platform

from run import Row

# What the chart shows, of the measurements that were made.
CHART_GROUPS = 10
WIDTH, LABEL, BAR, GAP = 760, 190, 18, 34
OURS, THEIRS, TEXT = "#2563eb", "#9ca3af", "#374151"


def number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def groups(rows):
    found = {}
    for row in rows:
        found.setdefault((row.what, row.unit), []).append(row)
    return found


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(models)} × {models[0] if models else 'CPU'}, {memory:.0f} GiB, Linux {platform.release()}"


class Part:
    """What a part has measured, how and where."""

    def __init__(self, rows, command, machine):
        self.rows, self.command, self.machine = rows, command, machine

    def saved(self):
        return {**vars(self), "rows": [row.saved() for row in self.rows]}

    @classmethod
    def restored(cls, saved):
        return cls([Row.restored(row) for row in saved["rows"]], saved["command"], saved["machine"])


def write(directory, measured, order):
    """Writes table and chart of all parts, those of earlier runs that were not measured again among them."""
    data = os.path.join(directory, "benchmark.json")
    every = {}
    if os.path.exists(data):
        with open(data, encoding="utf-8") as file:
            every = {name: Part.restored(part) for name, part in json.load(file).items()}
    every.update(measured)
    every = {name: every[name] for name in order if name in every}
    rows = [row for part in every.values() for row in part.rows]
    saved = json.dumps({name: part.saved() for name, part in every.items()}, indent=1) + "\n"
    for name, content in (("json", saved), ("md", markdown(every)), ("svg", chart(rows))):
        with open(os.path.join(directory, f"benchmark.{name}"), "w", encoding="utf-8") as out:
            out.write(content)


def markdown(parts):
    """One table for each thing measured. Ratios are of medians, to the first contender of each."""
    lines = [
        "# Benchmark",
        "",
        "Medians; the contenders of a table were measured in turns, in one run. Figures are of one machine at one moment; what",
        "can be compared are the ratios, which are to the first line of each table.",
    ]
    for name, part in parts.items():
        lines += ["", f"## {name[0].upper() + name[1:]}", "", f"`{part.command}`, on {part.machine}."]
        for (what, unit), contenders in groups(part.rows).items():
            lines += ["", f"**{what[0].upper() + what[1:]}**", "", f"| | {unit} | ratio | rounds | command |", "|---|--:|--:|--:|---|"]
            base = contenders[0].median
            for row in contenders:
                if row.median is None:
                    lines.append(f"| {row.who} | | | | failed: {row.failure} |")
                    continue
                ratio = f"{row.median / base:.2f}" if base and len(contenders) > 1 else ""
                lines.append(f"| {row.who} | {number(row.median)} | {ratio} | {len(row.values)} | `{row.command}` |")
    return "\n".join(lines) + "\n"


def chart(rows):
    """Bars, shorter is better; each group has its own scale."""
    shown = [(key, [r for r in g if r.median]) for key, g in groups(rows).items() if key[1] == "s"]
    shown = [(key, g) for key, g in shown if len(g) > 1 and any(r.who.startswith("restorefs") for r in g)][:CHART_GROUPS]
    parts, y = [], 16
    for (what, unit), group in shown:
        parts.append(text(0, y + 12, what.replace("`", ""), "bold"))
        y += 22
        longest = max(row.median for row in group)
        for row in sorted(group, key=lambda row: row.median):
            ours = row.who.startswith("restorefs")
            width = max(2, (WIDTH - LABEL - 90) * row.median / longest)
            parts.append(text(LABEL - 8, y + 13, row.who, "bold" if ours else "normal", "end"))
            parts.append(
                f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR - 3}" rx="2" fill="{OURS if ours else THEIRS}"/>'
            )
            parts.append(text(LABEL + width + 6, y + 13, f"{number(row.median)} {unit}"))
            y += BAR
        y += GAP - BAR
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" '
        'font-family="system-ui, sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def text(x, y, words, weight="normal", anchor="start"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{TEXT}" font-weight="{weight}" text-anchor="{anchor}">{html.escape(words)}</text>'
    )
