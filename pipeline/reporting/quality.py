"""Quality: every figure of both stages together, and how well a classifier recognises each class that was drawn."""

from smalti.pipeline.reporting import page
from smalti.pipeline.reporting.found import Found
from smalti.pipeline.reporting.meanings import told_figures
from smalti.pipeline.reporting.page import Section, percent


def section(found: Found) -> Section:
    title = "Quality of samples and codes"
    if "pipeline" not in found.evaluations:
        lacking = page.missing("Both stages together were not evaluated", found.command("pipeline/evaluate.py"))
        return Section("quality", title, lacking, False)
    count = found.evaluations["pipeline"]["protocol"].get("drawn")
    drawn = f"{count:,} images were drawn" if isinstance(count, int) else "none were drawn"
    caption = f"On the {found.of('pipeline', 'priced')}; {drawn}"
    parts = [page.figures_table(told_figures(found, "pipeline"), caption=caption)]
    if classes := found.numbers("pipeline", "agreement_by_class"):
        parts.append(page.class_bars("Class agreement, by class", classes, percent))
    return Section("quality", title, page.join(*parts))
