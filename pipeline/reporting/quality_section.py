"""The section on quality: figures of both stages together, and how well a classifier recognises each drawn class."""

from smalti.pipeline.reporting import markup
from smalti.pipeline.reporting.markup import Section, percent
from smalti.pipeline.reporting.meanings import figures_with_meanings
from smalti.pipeline.reporting.run_contents import RunContents


def quality_section(contents: RunContents) -> Section:
    """Return the section on the quality of samples and codes."""
    title = "Quality of samples and codes"
    if "pipeline" not in contents.evaluations:
        lacking = markup.missing("Both stages together were not evaluated", contents.command("pipeline/evaluate.py"))
        return Section("quality", title, lacking, False)
    count = contents.evaluations["pipeline"]["protocol"].get("drawn")
    drawn = f"{count:,} images were drawn" if isinstance(count, int) else "none were drawn"
    caption = f"On the {contents.of('pipeline', 'priced')}; {drawn}"
    parts = [markup.figures_table(figures_with_meanings(contents, "pipeline"), caption=caption)]
    if classes := contents.numbers("pipeline", "agreement_by_class"):
        parts.append(markup.class_bars("Class agreement, by class", classes, percent))
    return Section("quality", title, markup.join(*parts))
