"""The page to play with, laid out in Gradio: tabs over one controller, which has the actions behind the events.

This is the one file that needs Gradio, an optional dependency.
"""

import functools
import html
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from smalti.common.errors import UserError

try:
    import gradio as gr
except ImportError:
    raise UserError("the page needs Gradio: pip install gradio") from None

from smalti.pipeline.image_pipeline import Generated
from smalti.pipeline.playground import gradio_style, grid_board, plane_board, saving
from smalti.pipeline.playground.controller import (
    OFF,
    Canvas,
    CodeController,
    Controller,
    Held,
    MapController,
    ScalesController,
    controls,
    read_sampling,
)
from smalti.pipeline.playground.endpoints import MOST, Endpoints
from smalti.pipeline.playground.examples import NUMBER, PICTURES, Example, examples
from smalti.pipeline.playground.guard import log
from smalti.pipeline.playground.project import project_link
from smalti.pipeline.playground.saving import save_button, save_buttons
from smalti.pipeline.reporting.markup import Html, join, tag

FEW_CLASSES = 20  # up to so many classes are all visible
MOST_COMPLETIONS, COMPLETIONS = 11, 8
NO_CLASS = -1  # the value of the class control
KEPT = (600, 3600)  # seconds: every ten minutes, files dropped an hour ago are deleted
PICKED = """
element.addEventListener('click', event => {
  const figure = event.target.closest('figure[data-index]');
  if (figure) trigger('click', {index: Number(figure.dataset.index)});
});
"""


def with_user_errors(event: Callable) -> Callable:
    """Wrap an event so that its `UserError` is shown to the visitor."""
    if inspect.isgeneratorfunction(event):

        @functools.wraps(event)
        def stream(*given: Any) -> Iterator[Any]:
            try:
                yield from event(*given)
            except UserError as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from None

        return stream

    @functools.wraps(event)
    def answer(*given: Any) -> Any:
        try:
            return event(*given)
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    return answer


class Blocks(gr.Blocks):
    """Gradio's blocks, which log a line for a bad request: anybody may send anything, and a traceback is for faults."""

    async def process_api(self, *given: Any, **named: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*given, **named)
        except gr.Error as error:
            raise gr.Error(error.message, print_exception=False) from None
        except Exception as error:
            log(error)
            raise gr.Error("nothing can be made of what was sent; load the page again", print_exception=False) from None

    def queue(self, *given: Any, **named: Any) -> "Blocks":
        """Begin the queue, with a session id of its own for an event whose session is "".

        Gradio looks for the messages of such an event under a name that it has not kept, and fails with a traceback.
        """
        super().queue(*given, **named)
        push = self._queue.push

        async def pushed(body: Any, request: Any, username: str | None) -> Any:
            body.session_hash = body.session_hash or None
            return await push(body=body, request=request, username=username)

        self._queue.push = pushed  # type: ignore[method-assign]
        return self


def theme() -> gr.themes.Base:
    """Return a theme of fonts that every system has: nothing is fetched."""
    made = gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="sm",
        font=list(gradio_style.FONTS),
        font_mono=list(gradio_style.MONOSPACE),
    )
    return made.set(
        body_background_fill="#fdfdfc",
        body_text_color_subdued="#5d6570",
        block_background_fill="transparent",
        body_background_fill_dark="#16181b",
        block_background_fill_dark="transparent",
        block_border_width_dark="0px",
        button_primary_background_fill="#2f6fc4",
        button_primary_background_fill_hover="#265da6",
        button_primary_background_fill_dark="#2f6fc4",
        button_primary_background_fill_hover_dark="#265da6",
        button_primary_text_color="#ffffff",
        block_shadow="none",
        block_border_width="0px",
        checkbox_label_padding="4px 9px",
    )


def settled(made: gr.Slider, value: float | None) -> float:
    """Return the value of a slider that is nearest to what its field holds, the least one where it holds nothing.

    A field holds whatever is typed, also in the midst of it. Once it is left, it shows the same value.
    """
    held = min(max(made.minimum if value is None else value, made.minimum), made.maximum)
    return math.floor(held + 0.5) if made.step == 1 else held


def slider(*given: Any, **named: Any) -> gr.Slider:
    """Return a slider whose events take what its field holds as `settled` does, where Gradio refuses it.

    A class of our own would do the same, but Gradio writes a stub beside the file of each component's class.
    """
    made = gr.Slider(*given, **named)
    made.preprocess = functools.partial(settled, made)  # type: ignore[method-assign]
    return made


def _shown_label(held: Held) -> int:
    return NO_CLASS if held.label is None else held.label


class Page:
    """The components and their events. All tabs share the selected picture: an event that changes it updates all."""

    def __init__(self, controller: Controller, name: str):
        """
        Args:
            name: the run's name.
        """
        self.controller, self.name = controller, name
        self.file = re.sub(r"\W+", "_", name).strip("_") or "smalti"  # of what is saved
        self.classes = [(name, number) for number, name in enumerate(controller.names or ())]
        self.guided = controller.pipeline.prior.config.takes_guidance
        self.first = controller.draw([], NUMBER, 0, {})
        held = controller.pick(self.first, 0)
        with Blocks(analytics_enabled=False, title=f"{name} – Smalti", delete_cache=KEPT) as self.blocks:
            self._head()
            self.drawn, self.held = gr.State(self.first), gr.State(held)
            with gr.Tabs():
                with gr.Tab("Draw", id="draw"):
                    self._draw_tab()
                with gr.Tab("Look", id="look"):
                    self._look_tab(held)
                self._more_tabs(held)
            self._join()
            for name, function in Endpoints(controller).named.items():
                gr.api(with_user_errors(function), api_name=name, concurrency_limit=None)

    # ---------------------------------------------------------------------------------------------------------- layout

    def _head(self) -> None:
        c = self.controller.pipeline.tokenizer.config
        H, W = c.image_size
        facts = [
            self.name,
            f"images of {H} × {W}",
            str(c.layout).replace(" x ", " × "),
            f"{len(self.classes)} classes" if self.classes else "no classes",
        ]
        link = project_link()
        title = "Smalti" if link is None else tag("a", "Smalti", href=link)
        gr.HTML(join(tag("h1", title), tag("p", " · ".join(facts))), elem_classes="tes-head")

    @staticmethod
    def _note(text: str) -> None:
        gr.HTML(tag("p", text, class_="tes-note"))

    @staticmethod
    def _savers(*buttons: Html) -> None:
        gr.HTML(save_buttons(*buttons), js_on_load=saving.SCRIPT)

    def _or_none(self) -> list[tuple[str, int]]:
        """Return the classes to choose from, and that there is none where the tokenizer need not be told."""
        return self.classes if self.controller.needs_class else [("no class", NO_CLASS), *self.classes]

    def _class_of_picture(self, held: Held) -> gr.Dropdown:
        label = "Class of the picture"
        info = "encoded and decoded as of this class" if self.controller.needs_class else "which the prior is told"
        told = self.controller.pipeline.condition.told
        return gr.Dropdown(
            self._or_none(), value=_shown_label(held), label=label, info=info, visible=told, elem_id="look-label"
        )

    def _drop_zone(self, name: str) -> gr.File:
        return gr.File(
            label="Drop a picture",
            show_label=False,
            file_types=["image"],
            height=110,
            elem_id=f"drop-{name}",
            elem_classes="tes-drop",
        )

    def _draw_tab(self) -> None:
        set_to, takes = controls(self.controller.pipeline.sampling), self.controller.pipeline.prior.takes
        with gr.Row():
            with gr.Column(scale=1, min_width=280, elem_classes="tes-side"):
                many, some = len(self.classes) > FEW_CLASSES, bool(self.classes)
                label, info = "Classes", "none chosen: all in turn"
                self.labels = (
                    gr.Dropdown(self.classes, value=[], multiselect=True, label=label, info=info, elem_id="classes")
                    if many
                    else gr.CheckboxGroup(self.classes, label=label, info=info, visible=some, elem_id="classes")
                )
                self.number = slider(1, MOST, NUMBER, step=1, label="Images", elem_id="number")
                with gr.Row():
                    self.temperature = slider(
                        0.1,
                        max(2.0, set_to["temperature"]),
                        set_to["temperature"],
                        step=0.05,
                        label="Temperature",
                        visible="temperature" in takes,
                    )
                    self.guidance = slider(
                        0,
                        max(4.0, set_to["guidance"]),
                        set_to["guidance"],
                        step=0.05,
                        label="Guidance",
                        visible=self.guided,
                    )
                self.steps = slider(
                    0,
                    max(100, set_to["steps"]),
                    set_to["steps"],
                    step=1,
                    label="Passes",
                    info="0: the usual number",
                    visible="steps" in takes,
                    elem_id="steps",
                )
                cut = any(set_to[key] != off for key, off in OFF.items())
                with gr.Accordion("Truncation", open=cut, visible="top_k" in takes):
                    layout = self.controller.pipeline.tokenizer.config.layout
                    K = layout.codebook_size if layout.discrete else 1
                    self.top_k = slider(0, K, set_to["top_k"], step=1, label="Top k", info="0: all codes")
                    self.top_p = slider(0.01, 1, set_to["top_p"], step=0.01, label="Top p", info="1: all codes")
                    self.min_p = slider(0, 1, set_to["min_p"], step=0.01, label="Min p", info="0: all codes")
                self.seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="empty: at random", elem_id="seed")
                self.growing = gr.Checkbox(True, label="Watch them grow", container=False, elem_id="growing")
                self.draw = gr.Button("Draw", variant="primary", elem_id="draw-button")
                requests = examples(self.controller.names, takes, set_to["temperature"])
                with gr.Row(elem_id="examples"):
                    self.examples = [(gr.Button(each.title, size="sm", min_width=120), each) for each in requests]
            with gr.Column(scale=3, min_width=300):
                self.sheet = gr.HTML(self.controller.sheet(self.first, 0), js_on_load=PICKED, elem_id="sheet")
                self._note(
                    "Click an image to take it to the other pages. The same label, seed and settings draw it again."
                )
                choose = "Choose an image first"
                self._savers(
                    save_button("Save the chosen image", "#sheet .chosen img", f"{self.file}.png", choose),
                    save_button("Save all as one picture", "#sheet img", f"{self.file}_grid.png"),
                )

    def _look_tab(self, held: Held) -> None:
        with gr.Row():
            with gr.Column(scale=1, min_width=240, elem_classes="tes-side"):
                self.drop_look = self._drop_zone("look")
                with gr.Row(elem_id="pictures"):
                    self.pictures = [(gr.Button(name, size="sm", min_width=60), name) for name in PICTURES]
                self.look_label = self._class_of_picture(held)
                self._note(
                    "A picture of any shape is cropped and resized to the tokenizer's size. What its codes decode to "
                    "is the best that any prior over them could draw of it."
                )
            with gr.Column(scale=4, min_width=300):
                self.looked = gr.HTML(self.controller.look(held), elem_id="looked")
                self._savers(save_button("Save the reconstruction", "#tes-again img", f"{self.file}_again.png"))

    @staticmethod
    def _board(value: dict[str, Any], mode: str, told: str, name: str) -> gr.HTML:
        return gr.HTML(
            value,
            html_template=grid_board.TEMPLATE,
            js_on_load=grid_board.SCRIPT,
            mode=mode,
            told=told,
            elem_id=name,
            padding=False,
        )

    # ---------------------------------------------------------------------------------------------------------- events

    @staticmethod
    def _on(
        listen: Callable,
        event: Callable,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        quiet: bool = False,
        last: bool = False,
        in_turn: str | None = None,
    ) -> Any:
        """Bind an event, and return it, for another to follow.

        Only the page calls it; events wait for their turn at the controller, see `Controller`.

        Args:
            last: of what comes while it is being answered, only the last is answered.
            in_turn: the name of events that are answered all, one after the other; by default what comes while an
                event is being answered is dropped.
        """
        more = {"trigger_mode": "always_last"} if last else {"trigger_mode": "multiple"} if in_turn else {}
        return listen(
            with_user_errors(event),
            list(inputs),
            list(outputs),
            api_visibility="private",
            concurrency_limit=1 if in_turn else None,
            concurrency_id=in_turn,
            show_progress="hidden" if quiet else "minimal",
            **more,
        )

    def on_draw(
        self,
        labels: list[int],
        number: int,
        seed: int | None,
        growing: bool,
        *settings: float,
    ) -> Iterator[tuple[Any, Any]]:
        sampling = self._sampling(*settings)
        drawn = self.controller.draw(labels or [], int(number), seed, sampling)
        for images in self.controller.grow(drawn, sampling) if growing else ():
            yield self.controller.sheet(drawn._replace(images=images)), drawn  # a click takes one of those that grow
        yield self.controller.sheet(drawn), drawn

    def on_pick(self, drawn: Generated, event: gr.EventData) -> tuple[Any, ...]:
        held = self.controller.pick(drawn, event.index)
        return self.controller.sheet(drawn, event.index), *self._in_hand(held)

    def on_drop(self, path: str, drawn: Generated, label: int) -> tuple[Any, ...]:
        """Empty the drop zone again, and select the dropped picture instead of a drawn one."""
        held = self.controller.drop(path, self._needed(label))
        return None, self.controller.sheet(drawn), *self._in_hand(held)

    def on_picture(self, name: str, drawn: Generated, label: int) -> tuple[Any, ...]:
        """Select one of the pictures to try instead of a drawn one."""
        held = self.controller.example(name, self._needed(label))
        return self.controller.sheet(drawn), *self._in_hand(held)

    def on_label(self, held: Held, label: int) -> tuple[Any, ...]:
        return self._in_hand(self.controller.relabel(held, None if label == NO_CLASS else label))

    def on_example(self, example: Example) -> tuple[Any, ...]:
        return example.labels, example.number, example.temperature

    def _needed(self, label: int) -> int | None:
        """Return the class of a new picture: the chosen one if the tokenizer must be told, none otherwise."""
        return label if self.controller.needs_class else None

    def _sampling(
        self, temperature: float, guidance: float, steps: float, top_k: float, top_p: float, min_p: float
    ) -> dict[str, Any]:
        return read_sampling(temperature, guidance if self.guided else None, steps, top_k, top_p, min_p)

    def _more_tabs(self, held: Held) -> None:
        """Add the tabs that only some families have."""

    def _join(self) -> None:
        """Bind each component's events to the components they change."""
        self.settings = [self.temperature, self.guidance, self.steps, self.top_k, self.top_p, self.min_p]
        asked = [self.labels, self.number, self.seed, self.growing, *self.settings]
        self._on(self.draw.click, self.on_draw, asked, [self.sheet, self.drawn])
        self._on(self.sheet.click, self.on_pick, [self.drawn], [self.sheet, *self._held_by()])
        for zone in self._drop_zones():
            given = [zone, self.drawn, self.look_label]
            self._on(zone.upload, self.on_drop, given, [zone, self.sheet, *self._held_by()])
        self._on(self.look_label.input, self.on_label, [self.held, self.look_label], self._held_by())
        for button, name in self.pictures:
            event = functools.partial(self.on_picture, name)
            self._on(button.click, event, [self.drawn, self.look_label], [self.sheet, *self._held_by()])
        for button, example in self.examples:
            event = functools.partial(self.on_example, example)
            set_to = self._on(button.click, event, [], [self.labels, self.number, self.temperature], quiet=True)
            self._on(set_to.then, self.on_draw, asked, [self.sheet, self.drawn])

    def _drop_zones(self) -> list[gr.File]:
        return [self.drop_look]

    def _held_by(self) -> list[Any]:
        """Return the components that show the selected picture, in the order of `_in_hand`."""
        return [self.held, self.looked, self.look_label]

    def _in_hand(self, held: Held) -> tuple[Any, ...]:
        """Return the values of those components for a picture."""
        return held, self.controller.look(held), _shown_label(held)


class CodePage(Page):
    """The page over codes in rows and columns, which are completed, browsed and painted with."""

    controller: CodeController

    def _more_tabs(self, held: Held) -> None:
        with gr.Tab("Complete", id="complete"):
            self._complete_tab(held)
        with gr.Tab("Codebook", id="codebook"):
            self._codebook_tab(held)

    def _complete_tab(self, held: Held) -> None:
        with gr.Row():
            with gr.Column(scale=1, min_width=240, elem_classes="tes-side"):
                self.drop_complete = self._drop_zone("complete")
                self.label = gr.Dropdown(
                    self._or_none(),
                    value=_shown_label(held),
                    label="Class",
                    visible=bool(self.classes),
                    elem_id="label",
                )
                with gr.Row():
                    self.completions = slider(1, MOST_COMPLETIONS, COMPLETIONS, step=1, label="Completions")
                    self.complete_seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="empty: at random")
                with gr.Row():
                    self.uncover = gr.Button("Uncover", size="sm", min_width=80, elem_id="uncover")
                    self.cover_half = gr.Button("Lower half", size="sm", min_width=80, elem_id="cover-half")
                self.complete = gr.Button("Complete", variant="primary", elem_id="complete-button")
            with gr.Column(scale=2, min_width=300):
                self.mask = self._board(
                    self.controller.cover(held, self.controller.lower_half), "cover", "The picture", "mask"
                )
                self._note(
                    f"Drag over places to cover them, over covered ones to uncover them. {self._how_it_completes()}"
                )
            with gr.Column(scale=2, min_width=300):
                completed, _ = self.controller.complete(
                    held, self.controller.lower_half, held.label, COMPLETIONS, 0, {}
                )
                self.completed = gr.HTML(completed, elem_id="completed", elem_classes="tes-completions")
                self._savers(save_button("Save all as one picture", "#completed img", f"{self.file}_completed.png"))

    def _how_it_completes(self) -> str:
        settings = "Temperature, guidance and truncation are those of the first page."
        prior = self.controller.pipeline.prior
        if prior.config.any_order or prior.heeds_all:
            return f"What is covered is drawn given everything that is kept. {settings}"
        return f"This prior {prior.unheeded}; it stays as it is. {settings}"

    def _codebook_tab(self, held: Held) -> None:
        codebook, code = self.controller.codebook, int(self.controller.codebook.usual[0])
        canvas = self.controller.canvas(held)
        self.code, self.canvas = gr.State(code), gr.State(canvas)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                with gr.Row(visible=codebook.counted or codebook.depths > 1):
                    self.by_use = gr.Radio(
                        [("the most used first", True), ("by number", False)],
                        value=codebook.counted,
                        show_label=False,
                        visible=codebook.counted,
                        container=False,
                    )
                    depths = [(f"depth {depth + 1}", depth) for depth in range(codebook.depths)]
                    self.depth = gr.Radio(
                        depths, value=0, show_label=False, visible=codebook.depths > 1, container=False
                    )
                self.number_of_page = slider(
                    1, max(2, codebook.pages), 1, step=1, label="Page of the codebook", visible=codebook.pages > 1
                )
                self.codes = self._board(
                    self.controller.codes_board(0, codebook.counted, 0, code), "pick", "The codebook", "codes"
                )
                self.told = gr.HTML(self.controller.tell(0, code), elem_id="code")
            with gr.Column(scale=1, min_width=300):
                self.painting = self._board(
                    self.controller.canvas_board(canvas), "paint", "The image to paint", "canvas"
                )
                with gr.Row():
                    self.undo = gr.Button("Undo", size="sm", min_width=80, elem_id="undo")
                    self.blank = gr.Button("Blank", size="sm", min_width=80, elem_id="blank")
                    self.again = gr.Button("Start again", size="sm", min_width=80, elem_id="in-hand")
                self._savers(save_button("Save the image", "#canvas img", f"{self.file}_painted.png"))
                self._note(
                    "Choose a code of the codebook, then click or drag over the image: its places take the code, and "
                    "the image is decoded anew. What a code looks like depends on its neighbours."
                )
                self.drop_codebook = self._drop_zone("codebook")

    # ---------------------------------------------------------------------------------------------------------- events

    def _join(self) -> None:
        super()._join()
        self._on(self.uncover.click, self.on_uncover, [self.held], [self.mask])
        self._on(self.cover_half.click, self.on_cover_half, [self.held], [self.mask])
        given = [self.held, self.mask, self.label, self.completions, self.complete_seed]
        self._on(self.complete.click, self.on_complete, [*given, *self.settings], [self.completed])
        where = [self.depth, self.by_use, self.number_of_page]
        self._on(self.codes.click, self.on_code, [*where, self.code], [self.code, self.codes, self.told], quiet=True)
        for control in where:
            told_of = control.input  # type: ignore[attr-defined]  # events are put into the class when it is made
            self._on(told_of, self.on_page, [*where, self.code], [self.codes, self.told], quiet=True, last=True)
        shown, at = [self.canvas, self.painting], [self.canvas, self.depth, self.code]
        self._on(self.painting.click, self.on_paint, at, shown, quiet=True, in_turn="canvas")
        self._on(self.undo.click, self.on_undo, [self.canvas], shown, quiet=True, in_turn="canvas")
        self._on(self.blank.click, self.on_blank, [self.canvas], shown, quiet=True, in_turn="canvas")
        self._on(self.again.click, self.on_in_hand, [self.held], shown, quiet=True)

    def _drop_zones(self) -> list[gr.File]:
        return [self.drop_look, self.drop_complete, self.drop_codebook]

    def _held_by(self) -> list[Any]:
        return [*super()._held_by(), self.mask, self.label, self.completed, self.canvas, self.painting]

    def _in_hand(self, held: Held) -> tuple[Any, ...]:
        canvas = self.controller.canvas(held)
        board_to_cover, painting = (
            self.controller.cover(held, self.controller.lower_half),
            self.controller.canvas_board(canvas),
        )
        return *super()._in_hand(held), board_to_cover, _shown_label(held), "", canvas, painting

    def on_uncover(self, held: Held) -> dict[str, Any]:
        return self.controller.cover(held, [])

    def on_cover_half(self, held: Held) -> dict[str, Any]:
        return self.controller.cover(held, self.controller.lower_half)

    def on_complete(
        self,
        held: Held,
        covered: dict[str, Any],
        label: int,
        number: int,
        seed: int | None,
        *settings: float,
    ) -> str:
        sampling = self._sampling(*settings)
        made, warnings = self.controller.complete(
            held, covered.get("covered"), None if label == NO_CLASS else label, int(number), seed, sampling
        )
        for warning in warnings:
            gr.Warning(html.escape(warning))
        return made

    def on_code(self, depth: int, by_use: bool, page: int, before: int, event: gr.EventData) -> tuple[Any, ...]:
        code = self.controller.code_at(event.places, depth, by_use, int(page) - 1)
        code = before if code is None else code
        return code, *self.on_page(depth, by_use, page, code)

    def on_page(self, depth: int, by_use: bool, page: int, code: int) -> tuple[Any, ...]:
        return self.controller.codes_board(depth, by_use, int(page) - 1, code), self.controller.tell(depth, code)

    def on_paint(self, canvas: Canvas, depth: int, code: int, event: gr.EventData) -> tuple[Any, ...]:
        return self._shown(self.controller.paint(canvas, event.places, depth, code))

    def on_undo(self, canvas: Canvas) -> tuple[Any, ...]:
        return self._shown(self.controller.undo(canvas))

    def on_blank(self, canvas: Canvas) -> tuple[Any, ...]:
        return self._shown(self.controller.blank(canvas))

    def on_in_hand(self, held: Held) -> tuple[Any, ...]:
        return self._shown(self.controller.canvas(held))

    def _shown(self, canvas: Canvas) -> tuple[Any, ...]:
        return canvas, self.controller.canvas_board(canvas)


class ScalesPage(Page):
    """The page over several grids, with a slider over them."""

    controller: ScalesController

    def _more_tabs(self, held: Held) -> None:
        with gr.Tab("Scales", id="scales"):
            self._scales_tab(held)

    def _scales_tab(self, held: Held) -> None:
        most = len(self.controller.grids)
        kept = max(1, most // 2)
        with gr.Row():
            with gr.Column(scale=1, min_width=240, elem_classes="tes-side"):
                self.drop_scales = self._drop_zone("scales")
            with gr.Column(scale=3, min_width=300):  # on a phone the picture stands right below the slider
                self.kept = slider(1, most, kept, step=1, label="Grids that are kept", elem_id="kept-grids")
                self.coarse = gr.HTML(self.controller.coarse(held, kept), elem_id="coarse")
                self._note(
                    "The slider shows what the picture's coarse grids say alone. The button draws the finer ones anew, "
                    "given those that are kept. Temperature, guidance and truncation are those of the first page."
                )
        with gr.Row():
            with gr.Column(scale=1, min_width=240, elem_classes="tes-side"):
                self.label = gr.Dropdown(
                    self._or_none(),
                    value=_shown_label(held),
                    label="Class",
                    visible=bool(self.classes),
                    elem_id="scales-label",
                )
                with gr.Row():
                    self.number_refined = slider(1, MOST_COMPLETIONS, COMPLETIONS, step=1, label="Pictures")
                    self.refine_seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="empty: at random")
                self.refine = gr.Button("Draw the finer grids", variant="primary", elem_id="refine-button")
            with gr.Column(scale=3, min_width=300):
                refined = self.controller.refine(held, kept, held.label, COMPLETIONS, 0, {}) if kept < most else ""
                self.refined = gr.HTML(refined, elem_id="refined")
                self._savers(save_button("Save all as one picture", "#refined img", f"{self.file}_refined.png"))

    def _join(self) -> None:
        super()._join()
        self._on(self.kept.input, self.on_kept, [self.held, self.kept], [self.coarse, self.refined], True, True)
        given = [self.held, self.kept, self.label, self.number_refined, self.refine_seed]
        self._on(self.refine.click, self.on_refine, [*given, *self.settings], [self.refined])

    def _drop_zones(self) -> list[gr.File]:
        return [self.drop_look, self.drop_scales]

    def _held_by(self) -> list[Any]:
        return [*super()._held_by(), self.coarse, self.kept, self.label, self.refined]

    def _in_hand(self, held: Held) -> tuple[Any, ...]:
        kept = max(1, len(self.controller.grids) // 2)
        return *super()._in_hand(held), self.controller.coarse(held, kept), kept, _shown_label(held), ""

    def on_kept(self, held: Held, kept: float) -> tuple[str, str]:
        return self.controller.coarse(held, int(kept)), ""  # what was drawn for other grids goes

    def on_refine(
        self,
        held: Held,
        kept: float,
        label: int,
        number: float,
        seed: int | None,
        *settings: float,
    ) -> str:
        sampling = self._sampling(*settings)
        told = None if label == NO_CLASS else label
        return self.controller.refine(held, int(kept), told, int(number), seed, sampling)


class MapPage(Page):
    """The page over vectors, with the latent map."""

    controller: MapController

    def _more_tabs(self, held: Held) -> None:
        with gr.Tab("Latent map", id="map"):
            self._map_tab()

    def _map_tab(self) -> None:
        shown, (right, up) = self.controller.map, self.controller.first_place
        board, told = self.controller.at(right, up)
        left, most, bottom, top = shown.extent
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.plane = gr.HTML(
                    board,
                    html_template=plane_board.TEMPLATE,
                    js_on_load=plane_board.SCRIPT,
                    told=f"{len(shown.images)} held-out images on a plane; the sliders beside it choose a place",
                    elem_id="plane",
                    padding=False,
                )
                gr.HTML(plane_board.legend(shown), padding=False)
            with gr.Column(scale=2, min_width=300):
                self.there = gr.HTML(told, elem_id="there")
                self._savers(save_button("Save the image", "#tes-decoded img", f"{self.file}_decoded.png"))
                choices = [("the nearest image's", NO_CLASS), *self.classes]
                self.map_label = gr.Dropdown(
                    choices,
                    value=NO_CLASS,
                    label="Class",
                    info="as of which a place is decoded",
                    visible=self.controller.needs_class,
                    elem_id="map-label",
                )
                names = (name.capitalize() for name in shown.axes)
                ends = ((left, most, right, "right"), (bottom, top, up, "up"))
                self.right, self.up = (
                    slider(low, high, round(value, 2), step=0.01, label=name, elem_id=f"plane-{id_}")
                    for name, (low, high, value, id_) in zip(names, ends, strict=True)
                )
                self._note(
                    f"Each point is one of {len(shown.images)} held-out images, coloured by class, where the "
                    f"encoder puts it, seen along the {shown.axes[0]} and the {shown.axes[1]}. Click or drag over the "
                    "plane, or move the sliders: what lies there is decoded, beside the image of the nearest point."
                )

    def _join(self) -> None:
        super()._join()
        board: list[Any] = [self.plane, self.there]
        place: list[Any] = [self.right, self.up, self.map_label]
        self._on(self.plane.click, self.on_place, [self.map_label], [*board, self.right, self.up], True, True)
        for control in place:
            self._on(control.input, self.on_slider, place, board, True, True)

    def on_place(self, label: int, event: gr.EventData) -> tuple[Any, ...]:
        board, told = self.on_slider(event.right, event.up, label)
        return board, told, round(board["right"], 2), round(board["up"], 2)

    def on_slider(self, right: float, up: float, label: int) -> tuple[Any, ...]:
        return self.controller.at(right, up, None if label == NO_CLASS else label)


def make_page(controller: Controller, name: str) -> Page:
    """Return the page that fits a controller.

    Args:
        name: the run's name.
    """
    if isinstance(controller, MapController):
        return MapPage(controller, name)
    if isinstance(controller, ScalesController):
        return ScalesPage(controller, name)
    return CodePage(controller, name) if isinstance(controller, CodeController) else Page(controller, name)
