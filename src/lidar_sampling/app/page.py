"""The page: its layout, and what its buttons do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .. import methods, rewards
from .._values import accepts
from ..runs import Job
from ..service import Desk, FullError, Order
from . import shown, words
from .controls import Controls, one_word, plain, restore

TITLE = "LiDAR: guidance by lookahead samples"
_PLAIN = "Without guidance, from the same noise"
_WAIT = 0.5  # seconds between two checks of an order

CSS = """
.status { font-weight: 600; margin: .2rem 0; }
.status.failed { color: var(--error-text-color, #b91c1c); }
progress { width: 100%; height: .6rem; appearance: none; border: 0; border-radius: .3rem; overflow: hidden; }
progress, progress::-webkit-progress-bar { background: var(--border-color-primary); }
progress::-webkit-progress-value { background: var(--color-accent); }
progress::-moz-progress-bar { background: var(--color-accent); }
svg.trace { width: 100%; height: auto; color: var(--body-text-color); }
svg.trace text { fill: currentColor; font-size: 15px; }
svg.trace .tick { stroke: currentColor; opacity: .18; }
svg.trace .band { fill: var(--color-accent); opacity: .2; }
svg.trace .mean { fill: none; stroke: var(--color-accent); stroke-width: 2.5; }
#notes:not(:has(li)), #live:not(:has(figure)) { display: none; }
svg.trace { max-width: 44rem; display: block; }
h3 { margin: .8rem 0 .3rem; font-weight: 600; }
.pictures { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(min(11rem, 46%), 1fr)); }
.pictures.small { gap: .4rem; grid-template-columns: repeat(auto-fill, minmax(4.6rem, 1fr)); }
.pictures figure { margin: 0; min-width: 0; }
.pictures img { width: 100%; border-radius: .4rem; cursor: zoom-in; display: block; }
.pictures input { position: absolute; opacity: 0; }
.pictures input:focus-visible + img { outline: 3px solid var(--color-accent); }
.pictures input:checked + img { position: fixed; inset: 0; margin: auto; width: min(92vw, 92vh); z-index: 1000;
  cursor: zoom-out; box-shadow: 0 0 0 100vmax rgb(0 0 0 / .75); image-rendering: auto; }
.pictures figcaption { font-size: .8rem; line-height: 1.35; padding-top: .15rem; overflow-wrap: anywhere; }
.pictures figcaption span { display: block; }
.pictures.small figcaption { font-size: .7rem; }
"""


def theme() -> gr.themes.Base:
    """Return the look of the page, with the device's own fonts, so that nothing is fetched from elsewhere."""
    return gr.themes.Soft(
        font=["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )


def make_page(desk: Desk, base: Job, usual: Controls) -> gr.Blocks:
    """Return the page.

    Args:
        desk: the desk that draws.
        base: a Job with the model and the settings that all Jobs of the page share.
        usual: the first values of the controls.
    """
    plain_orders: dict[str, str] = {}  # the Job of plain samples, and the order that drew it

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(f"# {TITLE}")
        current = gr.State("")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                prompt = gr.Textbox(usual.prompt, label="Prompt", lines=2, max_lines=6, autofocus=True)
                with gr.Row():
                    draw = gr.Button("Draw", variant="primary", elem_id="draw")
                    cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
                cost = gr.Markdown(elem_id="cost")
                scale = gr.Slider(0, max(20.0, 2 * usual.scale), usual.scale, step=0.5, label="Scale of the shift")
                n = gr.Slider(1, max(64, usual.n), usual.n, step=1, label="Lookahead samples, n")
                strength = gr.Slider(
                    0, max(100.0, 2 * usual.strength), usual.strength, step=0.5, label="Strength, lambda"
                )
                auto = gr.Checkbox(usual.auto, label="Strength from the bank (auto)")
                with gr.Row():
                    images = gr.Slider(1, 16, usual.images, step=1, label="Images")
                    seed = gr.Number(usual.seed, label="Seed", precision=0, minimum=0)
                with gr.Accordion("Reward, method, steps", open=False):
                    reward = gr.Dropdown(
                        [name for name in rewards.REGISTRY if not name.startswith("http")],
                        value=usual.reward,
                        label="Reward: a name, clip:0.9+ocr:0.1, or package.module:function",
                        allow_custom_value=True,
                    )
                    method = gr.Dropdown(
                        [name for name in methods.NAMES if name.islower()],
                        value=usual.method,
                        label="Method, of 'lidar methods'",
                        allow_custom_value=True,
                    )
                    steps = gr.Slider(1, max(100, usual.steps), usual.steps, step=1, label="Steps")
                    bank_seed = gr.Number(usual.bank_seed, label="Seed of the bank", precision=0, minimum=0)
                    only = gr.Textbox(usual.only, label="Only these pictures, from 0 (empty: all)", max_lines=1)
                    beside = gr.Checkbox(usual.beside, label="Also without guidance")
                with gr.Accordion("Restore settings", open=False):
                    dropped = gr.File(label="Drop a picture that lidar wrote", file_types=[".png"], type="filepath")
                with gr.Accordion("History", open=True):
                    history = gr.Radio([], label="Orders of this desk, latest first", elem_id="history")
            with gr.Column(scale=2, min_width=320):
                state = gr.HTML(elem_id="state")
                notes = gr.Markdown(elem_id="notes")
                live = gr.HTML(elem_id="live")
                guided = gr.HTML(elem_id="guided")
                unguided = gr.HTML(elem_id="plain")
                trace = gr.HTML(elem_id="trace")
                bank = gr.HTML(elem_id="bank")
                with gr.Accordion("Copy and download", open=False):
                    command = gr.Code(label="As a command", language="shell", elem_id="as-command", wrap_lines=True)
                    python = gr.Code(label="As Python", language="python", elem_id="as-python")
                    job_json = gr.Code(label="As a Job", language="json", elem_id="as-job")
                    download = gr.File(label="Pictures, numbers and bank", elem_id="download", interactive=False)

        inputs = {
            "prompt": prompt,
            "reward": reward,
            "method": method,
            "images": images,
            "seed": seed,
            "bank_seed": bank_seed,
            "only": only,
            "n": n,
            "scale": scale,
            "auto": auto,
            "strength": strength,
            "steps": steps,
            "beside": beside,
        }
        names = {component: name for name, component in inputs.items()}
        everything = [current, state, notes, live, guided, unguided, trace, bank, command, python, job_json, download]
        everything += [history]

        def read_controls(values: dict[Any, Any]) -> Controls:
            return Controls(**{names[component]: value for component, value in values.items() if component in names})

        def choices(chosen: str | None = None) -> Any:
            orders = [order for order in reversed(desk.orders.values()) if order.job.methods != ("vanilla",)]
            return gr.Radio(choices=[(shown.label(order), order.id) for order in orders], value=chosen)

        def all_of(order: Order, beside: Order | None) -> dict[Any, Any]:
            as_command, as_python, as_json = shown.texts(order)
            return {
                current: order.id,
                state: words.status(desk, order),
                notes: "\n".join(f"- {note}" for note in order.notes),
                live: "",
                guided: shown.pictures(order, _title(order)),
                unguided: shown.pictures(beside, _PLAIN) if beside else "",
                trace: shown.trace(order),
                bank: shown.bank(order),
                command: as_command,
                python: as_python,
                job_json: as_json,
                download: shown.archive(order),
            }

        def plain_of(job: Job) -> Order | None:
            order = desk.orders.get(plain_orders.get(key_of(job), ""))
            return order if order is not None and order.state not in ("failed", "cancelled", "lost") else None

        def draws(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
            controls = read_controls(values)
            try:
                job = controls.job(base)
                order = desk.submit(job)
            except (ValueError, TypeError, FullError) as error:
                yield {state: words.refusal(str(error))}
                return
            yield {current: order.id, history: choices(order.id), notes: "", guided: "", unguided: "", trace: ""}
            yield from watch(order)
            other = None
            if order.state == "done" and controls.beside and job.methods != ("vanilla",):
                other = plain_of(plain(job))
                if other is None:
                    try:
                        other = desk.submit(plain(job))
                        plain_orders[key_of(plain(job))] = other.id
                    except (ValueError, FullError) as error:
                        order.notes.append(f"drawn without its plain samples: {error}")
                if other is not None and not other.ended:
                    so_far = {**all_of(order, None), current: other.id, state: words.status(desk, other)}
                    yield {**so_far, history: choices(order.id)}
                    yield from watch(other)
            yield {**all_of(order, other), history: choices(order.id)}

        def watch(order: Order) -> Iterator[dict[Any, Any]]:
            """Yield news of an order until it ends."""
            version, seen, looked_at = -1, None, False
            while not order.ended:
                version = order.wait(version, _WAIT)
                if order.ended:
                    break
                new: dict[Any, Any] = {state: words.status(desk, order)}
                if order.glimpse is not None and order.glimpse is not seen:
                    seen = order.glimpse
                    new[live] = shown.under_way(order)
                if order.bank is not None and not looked_at:
                    looked_at = True
                    new[bank] = shown.bank(order)
                yield new
            yield {live: ""}

        def costs(values: dict[Any, Any]) -> str:
            try:
                job = read_controls(values).job(base)
                lidar, method_asked = desk.sampler(job), methods.load(job.methods[-1])
                if lidar is None:
                    return "The cost is known once the reward is loaded, with the first picture."
                count = len(job.only) or job.images
                whole = method_asked.cost(lidar, images=count)
                left = None
                if isinstance(method_asked, methods.Guided) and has_bank(desk, job):
                    left = methods.Vanilla().cost(lidar, images=count)
                return words.cost_line(whole, desk.rates(job) or desk.rates(base), left)
            except (ValueError, TypeError) as error:
                return str(error)

        def stop(name: str) -> None:
            if (order := desk.orders.get(name)) is not None:
                desk.cancel(order)

        def restores(path: str | None) -> dict[Any, Any]:
            if path is None:
                return {state: ""}
            try:
                found, lost = restore(shown.said_by(path), base, usual)
            except (ValueError, OSError, KeyError, TypeError) as error:
                return {state: words.refusal(str(error))}
            said = words.say(words.say_restored(lost))
            return {**{inputs[name]: value for name, value in found.items()}, state: said}

        def recalls(name: str | None) -> dict[Any, Any]:
            if (order := desk.orders.get(name or "")) is None:
                return {state: words.refusal("this order is no longer kept")}
            found, _ = restore(order.job.to_json(brief=True), base, usual)
            return {
                **all_of(order, plain_of(plain(order.job))),
                **{inputs[name]: value for name, value in found.items()},
            }

        drawing: dict[str, Any] = {"inputs": set(inputs.values()), "outputs": everything, "concurrency_limit": 8}
        told: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        pricing: tuple[Any, ...] = costs, set(inputs.values()), cost
        draw.click(draws, **drawing, api_name="draw", show_progress="hidden").then(*pricing, **told)
        prompt.submit(draws, **drawing, show_progress="hidden", api_visibility="private").then(*pricing, **told)
        down = "() => { if (innerWidth < 768) document.querySelector('#state').scrollIntoView({behavior: 'smooth'}) }"
        draw.click(
            None, None, None, js=down, api_visibility="private"
        )  # on a narrow screen results are below the controls
        cancel.click(stop, [current], None, queue=False, api_visibility="private")
        dropped.change(restores, [dropped], [*inputs.values(), state], queue=False, api_visibility="private")
        history.input(recalls, [history], [*everything, *inputs.values()], queue=False, api_visibility="private")
        for component in (n, scale, auto, strength, images, seed, steps, reward, method, only, bank_seed):
            component.change(*pricing, **told)
        page.load(*pricing, **told)
        page.load(lambda: choices(), None, history, show_progress="hidden", api_visibility="private")
    return page


def has_bank(desk: Desk, job: Job) -> bool:
    """Return whether an order of this desk has already drawn the bank of a Job."""
    asks = _of_bank(job)
    return any(order.bank is not None and _of_bank(order.job) == asks for order in desk.orders.values())


def _of_bank(job: Job) -> dict[str, Any]:
    """Return everything that determines the bank of a Job."""
    settings = {
        name: value for name, value in job.settings.items() if name not in ("scale", "reward_scale", "ess", "steps")
    }
    method = job.methods[-1] if job.methods != ("lidar",) else ""
    return {**settings, "asks": (job.text(0), job.bank_seed, job.model, job.call, method)}


def _title(order: Order) -> str:
    return "Without guidance" if order.job.methods == ("vanilla",) else f"By {order.job.methods[-1]}"


def key_of(job: Job) -> str:
    """Return a text that identifies a Job."""
    return repr(job.to_json())


def usual_controls(lidar: Any, job: Job) -> Controls:
    """Return the first values of the controls: the settings of the model.

    Args:
        lidar: the sampler of the Job.
        job: the Job that the page starts from.
    """
    settings = lidar.settings
    auto = not accepts(float, settings.reward_scale)
    reward = rewards.name_of(lidar.reward) if job.reward is None else one_word(job.reward)
    return Controls(
        prompt=job.text(0),
        reward=reward,
        method="lidar",
        images=job.images,
        seed=job.seeds[0],
        bank_seed=job.seeds[0],
        only="",
        n=settings.n,
        scale=settings.scale,
        auto=auto,
        strength=1.0 if auto else settings.reward_scale,
        steps=settings.steps,
        beside=True,
    )
