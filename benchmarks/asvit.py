"""What scores of As-ViT networks cost: forward-mode derivative against one backward pass per output, and memory."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor, nn

from benchmarks.measure import Record, interleaved, parser, prepare, report, save, verdict
from hf_paraminit.asvit.architecture import Architecture
from hf_paraminit.asvit.complexity import circle_geometry, circle_points, draw_frame
from hf_paraminit.asvit.model import AsViT
from hf_paraminit.asvit.probe import remove_norms

TOPOLOGY = "6,2,4|3,1,4|3,1,4|3,1,4|32"
WIDTHS = (8, 32)  # 64 and 256 features
IMG_SIZE = 64
LEAST_SPEEDUP_PER_OUTPUT = 0.3
MOST_FORWARDS = 4.0
MEMORY_IMG_SIZE, MEMORY_WIDTH = 224, 32

# Peak resident memory of one process that does one thing, above what it had after importing and building.
MEMORY = """
import resource, torch
torch.set_num_threads({threads})
from benchmarks.asvit import build, circle_geometry, circle_points, draw_frame
from hf_paraminit.evaluation.cost import measured
model = build({width}, {img_size})
frame, theta = draw_frame((3, {img_size}, {img_size}), 0).float(), circle_points(10, torch.float32)
images = frame[0] * theta.cos()[:, None, None, None] + frame[1] * theta.sin()[:, None, None, None]
costs = {{}}
with torch.no_grad(), measured("work", costs):
    {work}
print(costs["work_peak_mb"])
"""
WORK = {
    "forward": "model.forward_pooled(images)",
    "score": "circle_geometry(model.forward_pooled, frame, theta)",
}


def build(width: int, img_size: int) -> AsViT:
    """A network as the search scores it, without norms."""
    torch.manual_seed(0)
    arch = Architecture.parse(TOPOLOGY).scaled(width=width)
    model = AsViT(arch, img_size, num_classes=0, drop_path_rate=0.0).eval().requires_grad_(False)
    remove_norms(model)
    return model


def speeds_by_loop(model: nn.Module, frame: Tensor, theta: Tensor) -> Tensor:
    """|dz/dtheta| with one backward pass per output; like the published code it fills the parameters' gradients too."""
    model.requires_grad_(True)
    points = theta.clone().requires_grad_()
    cosine, sine = points.cos()[:, None, None, None], points.sin()[:, None, None, None]
    features = model.forward_pooled(frame[0] * cosine + frame[1] * sine)  # type: ignore[operator]
    columns = []
    for index in range(features.shape[1]):
        points.grad = None
        features[:, index].sum().backward(retain_graph=True)
        assert points.grad is not None
        columns.append(points.grad)
    model.requires_grad_(False)
    return torch.stack(columns, dim=1).norm(dim=1)


def time_width(width: int, *, repeats: int) -> Record:
    """Compare both ways on one network."""
    model = build(width, IMG_SIZE)
    frame, theta = draw_frame((3, IMG_SIZE, IMG_SIZE), 0).float(), circle_points(10, torch.float32)
    forward_mode = circle_geometry(model.forward_pooled, frame, theta).speeds.float()
    torch.testing.assert_close(forward_mode, speeds_by_loop(model, frame, theta), rtol=1e-4, atol=0)
    loop, jvp = interleaved(
        [
            lambda: speeds_by_loop(model, frame, theta),
            lambda: circle_geometry(model.forward_pooled, frame, theta),
        ],
        repeats=repeats,
    )
    outputs = model.num_features
    return {
        "model": f"W={width}",
        "outputs C": outputs,
        "loop ms": 1e3 * loop,
        "forward mode ms": 1e3 * jvp,
        "loop / forward mode": loop / jvp,
        "target": f">= {LEAST_SPEEDUP_PER_OUTPUT * outputs:.0f}",
        "result": verdict(is_met=loop / jvp >= LEAST_SPEEDUP_PER_OUTPUT * outputs),
    }


def peak_memory(work: str, width: int, img_size: int, threads: int) -> float:
    """Megabytes, in a process of its own."""
    code = MEMORY.format(work=WORK[work], width=width, img_size=img_size, threads=threads)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def measure_memory(width: int, img_size: int, threads: int) -> Record:
    """Peak of a score beside that of one forward pass of the same ten images."""
    forward, score = (peak_memory(work, width, img_size, threads) for work in WORK)
    return {
        "model": f"W={width}, {img_size} px",
        "forward MB": forward,
        "score MB": score,
        "score / forward": score / forward,
        "target": f"<= {MOST_FORWARDS:g}",
        "result": verdict(is_met=score <= MOST_FORWARDS * forward),
    }


def main() -> None:
    """Run the benchmark."""
    arguments = parser("Cost of As-ViT's length distortion beside the published way.").parse_args()
    prepare(arguments)
    widths = WIDTHS[:1] if arguments.quick else WIDTHS
    times = [time_width(width, repeats=arguments.repeats) for width in widths]
    report(f"Ten points, {IMG_SIZE} px, {arguments.threads} thread(s), median of {arguments.repeats}", times)
    size = (WIDTHS[0], IMG_SIZE) if arguments.quick else (MEMORY_WIDTH, MEMORY_IMG_SIZE)
    memory = [measure_memory(*size, arguments.threads)]
    report("Peak memory over that of the built model", memory)
    save(arguments, {"time": times, "memory": memory})


if __name__ == "__main__":
    main()
