"""The section on latents that are vectors: the pictures of tokenizer/latents.py."""

from pathlib import Path

from smalti.pipeline.reporting import markup
from smalti.pipeline.reporting.markup import Html, Section
from smalti.pipeline.reporting.meanings import figures_with_meanings
from smalti.pipeline.reporting.run_contents import RunContents, read_run_picture

PICTURES = {
    "plane": "The decoded plane of two numbers, through evenly spaced quantiles of the standard normal.",
    "points": "Held-out images as points of the plane, by class, some with the ellipse of one deviation of q(z | x).",
    "classes": "A row a draw of the standard normal, decoded as each class: z is the style, the class the content.",
    "numbers": "How far the centre of each number moves over images, and its KL: collapsed numbers are at 0.",
    "traversals": "A row for each of the numbers that move most, along which that number alone goes from -3 to 3.",
    "interpolations": "Ways between pairs of held-out images: straight in the upper row, over the sphere in the lower.",
}


def picture(path: Path, caption: str) -> Html:
    """Return a picture of the run with its caption."""
    read_run_picture(path)
    return markup.figure_tag(markup.tag("div", markup.png_tag(path, caption), class_="plate"), caption)


def latents_section(contents: RunContents) -> Section:
    """Return the section on latents, which there is in the place of the codebook's where they are vectors."""
    paths = {name: contents.path / f"tokenizer/latents/{name}.png" for name in PICTURES}
    parts = [picture(path, PICTURES[name]) for name, path in paths.items() if path.exists()]
    statistics = contents.codes[0].statistics if contents.codes else None
    if parts and statistics is not None:
        least, most = min(statistics.deviation), max(statistics.deviation)
        parts.append(
            markup.paragraph(
                f"Over the training rows the numbers of z have standard deviations from {least:.3g} to {most:.3g}, "
                "draws from q(z | x) included where it is known."
            )
        )
    if "amortization" in contents.evaluations:
        caption = f"What amortisation costs, on {contents.of('amortization', 'number')}"
        parts.append(markup.figures_table(figures_with_meanings(contents, "amortization"), caption=caption))
    lacking = markup.missing("The latents were not drawn yet", contents.command("tokenizer/latents.py"))
    return Section("latents", "Latents", markup.join(*parts) if parts else lacking, bool(parts))
