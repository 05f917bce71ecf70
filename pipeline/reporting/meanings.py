"""The meaning of each figure of an evaluation: its title, a few words about it, and whether it is a share."""

from collections.abc import Iterator
from typing import NamedTuple

from smalti.pipeline.reporting.markup import Figure, number, percent
from smalti.pipeline.reporting.run_contents import RunContents, finite


class Meaning(NamedTuple):
    """The title of a figure and a few words about it."""

    title: str
    text: str
    share: bool = False


MEANINGS = {
    "psnr_pooled": Meaning(
        "PSNR, dB", "of 8-bit reconstructions, the squared error pooled over the split, as papers have it"
    ),
    "psnr": Meaning("PSNR, mean over images, dB", "of each image by itself, averaged: higher than the pooled one"),
    "ssim": Meaning("SSIM", "structural similarity of reconstructions; 1 is the original"),
    "distortion": Meaning("distortion, bits/dim", "what pixels cost once their codes are known"),
    "rate": Meaning("rate, bits/dim", "KL of q(z | x) to the standard normal: what z costs"),
    "bits_per_dim": Meaning("bits/dim", "distortion and rate: minus the ELBO"),
    "nll_of_density": Meaning("-log p(x), density", "of an image in nats: the model's own, no probability"),
    "nll_of_levels": Meaning("-log p(x), levels", "of an image in nats: the model's own, of its 8-bit levels"),
    "negative_elbo": Meaning("-ELBO, nats", "of an image: an upper bound on -log p(x)"),
    "importance_weighted": Meaning("importance-weighted bound, nats", "of an image: a tighter one, by several draws"),
    "active_units": Meaning("active units", "numbers of z that depend on the image"),
    "mutual_information": Meaning(
        "mutual information, nats", "what z says of which image it was, by the posteriors of all of them"
    ),
    "mutual_information_cap": Meaning("at most, nats", "the log of their number, which caps the figure above"),
    "marginal_kl": Meaning("KL(q(z) || N(0, I)), nats", "the other part of the rate: that of all posteriors together"),
    "mmd_to_prior": Meaning("MMD² to the prior", "of the posteriors of all images together; 0 is alike"),
    "label_nats": Meaning("label, nats", "of the rate: ln of the number of classes, for whoever is given one"),
    "rate_nats": Meaning("rate, nats", "of an image"),
    "amortised": Meaning("-ELBO by the encoder, nats", "of an image, the encoder's q(z | x)"),
    "own": Meaning("-ELBO by its own q, nats", "of an image, a q(z | x) fitted to it alone"),
    "amortisation_gap": Meaning("amortisation gap, nats", "what the encoder loses beside a q of each image"),
    "gap_standard_error": Meaning("its standard error", "by the draws of z, on these images"),
    "gap_standard_error_of_images": Meaning("and over images", "were other images taken"),
    "encoder_ms": Meaning("ms, the encoder", "for an image"),
    "own_ms": Meaning("ms, its own q", "for an image"),
    "moved": Meaning("images with a q of their own", "of the others the encoder's is as good", True),
    "distortion_nats": Meaning("distortion, nats", "of an image, the mean over draws of z"),
    "usage": Meaning("usage", "share of the codebook that was used at all", True),
    "perplexity": Meaning("perplexity", "codes that would be as varied were they used alike; at most K"),
    "accuracy_images": Meaning("accuracy on images", "of the classifier that looks at both", True),
    "accuracy_reconstructions": Meaning("accuracy on reconstructions", "of the same: what is kept of a class", True),
    "nll": Meaning("nats per code", "what a held-out code costs under the prior; lower is better"),
    "nll_error": Meaning("its standard error", "over images"),
    "bits_per_code": Meaning("bits per code", "the same in bits; at most log₂ K for a prior that learned nothing"),
    "bits_per_image": Meaning("bits per image", "what an ideal coder needs for all codes of an image, given its class"),
    "independent_nll": Meaning("nats, independent codes", "drawn one by one by their frequency in train"),
    "uniform_nll": Meaning("nats, uniform codes", "ln K: no code likelier than another"),
    "saved": Meaning(
        "saved", "share of the rate under independent codes that the prior does without, its class paid for", True
    ),
    "rate_saved": Meaning(
        "rate saved", "share of it that the learned prior does without, with the label paid for", True
    ),
    "train_nll": Meaning("nats, training images", "of as many training images"),
    "gap": Meaning("gap", "by how much held-out images cost more than training images: memorising is a large gap"),
    "bits_per_dim_error": Meaning("its standard error", "of the learned prior's bits per dimension, over images"),
    "kernel_distance": Meaning(
        "kernel distance", "to held-out images on the same features; chance may take it below 0"
    ),
    "precision": Meaning("precision", "share of drawn images among held-out ones: are they believable?", True),
    "recall": Meaning("recall", "share of held-out images among drawn ones: is everything drawn?", True),
    "density": Meaning("density", "how closely held-out images surround drawn ones; about 1 for real images"),
    "coverage": Meaning("coverage", "share of held-out images that have a drawn one in their neighbourhood", True),
    "classifier_accuracy": Meaning(
        "classifier accuracy", "on held-out images: how far to trust the next figures", True
    ),
    "class_agreement": Meaning("class agreement", "share of drawn images it takes for the class asked for", True),
    "classification_accuracy_score": Meaning(
        "classification accuracy score",
        "on held-out images, of a classifier that learned from drawn images alone",
        True,
    ),
}
PRIORS = {
    "standard_normal": "the standard normal, which the VAE was trained for",
    "uniform": "all codes alike likely",
    "independent": "each code by its frequency in train",
    "learned": "the learned prior",
}


def bound_meaning(bound: str, unit: str, prior: str) -> Meaning:
    """Return the meaning of a bound on an image's cost under a prior."""
    bounds = {"": "distortion and rate", "elbo": "evidence lower bound", "importance": "importance-weighted bound"}
    title = f"{unit}, {prior}" + (f", {bound}" if bound else "")
    return Meaning(title, f"{bounds.get(bound, bound)}: {PRIORS[prior]}")


def meaning(name: str) -> Meaning:
    """Return the meaning of a figure by its name in an evaluation; an unknown one has its name for a title."""
    if name in MEANINGS:
        return MEANINGS[name]
    if name == "fid":
        return Meaning("FID", "Fréchet distance to held-out images on Inception's features; lower is better")
    if name.startswith("memorised_"):
        what = name.removeprefix("memorised_")
        return Meaning(
            f"memorised, {what}", f"as near to a training image in {what} as 1% of held-out images are", True
        )
    if name.endswith("_train") and (name.startswith("fd_") or name == "fid_train"):
        return Meaning(
            f"{meaning(name.removesuffix('_train')).title}, train",
            "of as many training images, for scale; a classifier has seen those",
        )
    if name.startswith("fd_"):
        features = name.removeprefix("fd_")
        return Meaning(f"Fréchet distance ({features})", f"to held-out images on {features} features; lower is better")
    for prior, words in PRIORS.items():
        if name == f"{prior}_rate":
            return Meaning(f"rate, {prior}, bits/dim", f"what codes cost: {words}")
        if name == f"{prior}_rate_nats":
            return Meaning(f"rate, {prior}, nats", f"of an image: {words}")
        for end, unit in (("_bits_per_dim", "bits/dim"), ("_nats", "nats")):
            if name.startswith(f"{prior}_") and name.endswith(end):
                return bound_meaning(name.removeprefix(prior).removesuffix(end).strip("_"), unit, prior)
    return Meaning(name, "")


def meaning_in(contents: RunContents, name: str) -> Meaning:
    """Return the meaning of a figure in a run, whose latents may be vectors."""
    found = meaning(name)
    if not contents.vectors:
        return found
    text = found.text.replace("held-out code", "held-out number").replace("what codes cost", "what vectors cost")
    text = text.replace("their codes", "their vectors")
    return found._replace(title=found.title.replace("per code", "per number"), text=text)


def figures_with_meanings(contents: RunContents, stage: str) -> Iterator[Figure]:
    """Yield all plain numbers of a stage's evaluation."""
    for name, value in contents.evaluations[stage]["figures"].items():
        if finite(value) is not None:
            title, text, share = meaning_in(contents, name)
            text += contents.bound(stage) if name == "nll" else ""
            yield Figure(title, percent(value) if share else number(value), text)
