"""The options of a call by the names that diffusers has for them: what they are here, or what does it instead.

pipeline("3", guidance_scale=2.0)      # is guidance=2.0
pipeline("3", negative_prompt="4")     # is refused, by name
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch

from smalti.common.errors import UserError

OutputType = Literal["pil", "np", "pt"]
OUTPUT_TYPES = ("pil", "np", "pt")
SAME = {"guidance_scale": "guidance", "num_inference_steps": "steps"}
ON_TEXT = "what is drawn is told by class: give labels, of those in pipeline.class_names"
SIZE = "the tokenizer decides it, pipeline.tokenizer.config.image_size; resize the pictures"
NO_LATENTS = "all that is random comes from the seed: give seed or generator; pipeline.decode draws codes that you have"
INSTEAD = {
    "prompt": ON_TEXT,
    "prompt_2": ON_TEXT,
    "prompt_embeds": ON_TEXT,
    "negative_prompt": "guidance leans away from an image without a class, and from nothing else",
    "negative_prompt_2": "guidance leans away from an image without a class, and from nothing else",
    "negative_prompt_embeds": "guidance leans away from an image without a class, and from nothing else",
    "class_labels": "give labels, names or numbers",
    "num_images_per_prompt": "give num_images_per_label",
    "height": SIZE,
    "width": SIZE,
    "latents": NO_LATENTS,
    "scheduler": "a diffusion prior takes solver (dpm, ddim, ddpm, euler) and steps",
    "timesteps": "give steps, their number",
    "sigmas": "give steps, their number",
    "eta": "of a diffusion prior, solver ddpm draws noise in each step, and ddim and dpm draw none",
    "guidance_rescale": "give guidance_schedule, which lets guidance rise over the steps",
    "strength": "pipeline.vary(images, share=...) draws a share of an image's places again",
    "image": "pipeline.vary, complete, refine and interpolate take images",
    "mask_image": "pipeline.complete(images, mask) keeps a part and draws the rest",
    "return_dict": "the result is a tuple too, and its first value the images: leave it away",
    "callback": "give callback_on_step_end",
    "callback_steps": "callback_on_step_end is called after every pass: count in it",
    "callback_on_step_end_tensor_inputs": "callback_on_step_end always gets the latents",
    "cross_attention_kwargs": "there is no cross-attention: leave it away",
    "joint_attention_kwargs": "there is no joint attention: leave it away",
    "clip_skip": "there is no text encoder: leave it away",
    "ip_adapter_image": "there are no adapters: leave it away",
}
PARTS_INSTEAD = {  # attributes of diffusers' pipelines
    "scheduler": "how a prior draws is in the settings of a call: steps, solver, order",
    "unet": "the network that draws is pipeline.prior",
    "transformer": "the network that draws is pipeline.prior",
    "vae": "the network between images and latents is pipeline.tokenizer",
    "text_encoder": ON_TEXT,
    "safety_checker": "there is none",
    "load_lora_weights": "train further with --start_from, which begins from given weights",
    "enable_model_cpu_offload": 'a pipeline is small: .to("cuda") moves it whole',
    "enable_sequential_cpu_offload": 'a pipeline is small: .to("cuda") moves it whole',
    "enable_attention_slicing": "give a smaller batch_size to the call",
    "enable_vae_slicing": "images are decoded a few at once already",
    "enable_xformers_memory_efficient_attention": "attention is torch's own, which needs no more",
}


def ours(options: Mapping[str, Any], takes: Collection[str]) -> dict[str, Any]:
    """Return options under our names.

    Args:
        takes: the sampling settings that the prior heeds.
    Raises:
        UserError: an option that is not offered, with what does it instead; or one given under both names.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name not in SAME and name not in INSTEAD:
            found[name] = value
        elif value is None:  # what diffusers leaves out, and others pass on
            continue
        elif name in INSTEAD:
            raise UserError(f"{name} is not offered here: {INSTEAD[name]}")
        elif SAME[name] in options:
            raise UserError(f"{name} is {SAME[name]} under the name that diffusers has for it: give one of them")
        elif name == "guidance_scale" and isinstance(value, int | float) and value < 1:
            raise UserError(
                f"guidance_scale must be at least 1, which is no guidance, got {value:g}; guidance takes less, and "
                "leans away from the class"
            )
        elif SAME[name] == "steps" and "steps" not in takes:
            raise UserError(
                f"{name} is of priors that draw an image in passes, masked and diffusion: leave it out, this one draws "
                "in a number of steps that is its own"
            )
        else:
            found[SAME[name]] = value
    return found


def check_output_type(asked: str) -> None:
    """Raise `UserError` for a type of images that is not offered."""
    if asked == "latent":
        raise UserError("output_type latent is not offered: the latents are in every result, as .codes")
    if asked not in OUTPUT_TYPES:
        raise UserError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {asked!r}")


def of_type(images: list[PIL.Image.Image], asked: OutputType) -> Any:
    """Return B pictures as they are, or as diffusers has them: `np` (B, H, W, C), `pt` (B, C, H, W), in [0, 1]."""
    if asked == "pil":
        return images
    pixels = np.stack([np.atleast_3d(np.asarray(image)) for image in images]).astype(np.float32) / 255
    return pixels if asked == "np" else torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
