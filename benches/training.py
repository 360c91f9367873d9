"""Compares a training step of the sequence encoder with PyTorch: `make bench-train`.

Both use the same histories, network (pre-norm transformer, 2 blocks, 1 head, dropout 0.4), softmax over all items,
optimizer and number of threads. PyTorch receives the histories padded to the longest of the batch, because its
attention needs a rectangle, and computes logits only at positions with a target. Both are timed three times, in turn;
the table has the best median of each.

    training.py [--without-torch] [--steps N] [--repeats N]

--without-torch measures Lodestone alone.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

TOP = Path(__file__).resolve().parent.parent
LODESTONE = TOP / "target/release/lodestone"
OUT = TOP / "target/bench"
WIDTH, BLOCKS, DROPOUT = 64, 2, 0.4
THREADS = os.cpu_count()
# Name, items, histories, maximum length, mean length (None: all have the maximum length).
SHAPES = [
    ("all of length 50", 12_101, 128, 50, None),
    ("lengths as Amazon Beauty's", 12_101, 256, 50, 6.0),
]


class Encoder(torch.nn.Module if torch else object):
    """The network of Lodestone's sequence encoder. `forward` returns the mean cross-entropy over all targets (-1:
    none)."""

    def __init__(self, items, length):
        super().__init__()
        self.items = torch.nn.Parameter(0.02 * torch.randn(items + 1, WIDTH))
        self.positions = torch.nn.Parameter(0.02 * torch.randn(length, WIDTH))
        layer = torch.nn.TransformerEncoderLayer(WIDTH, 1, 4 * WIDTH, DROPOUT, "gelu", batch_first=True, norm_first=True)
        norm = torch.nn.LayerNorm(WIDTH)
        self.blocks = torch.nn.TransformerEncoder(layer, BLOCKS, norm, enable_nested_tensor=False)
        self.drop = torch.nn.Dropout(DROPOUT)

    def forward(self, histories, targets):
        length = histories.shape[1]
        x = self.drop(self.items[histories] + self.positions[-length:])
        causal = torch.nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.blocks(x, mask=causal, is_causal=True)
        valid = targets >= 0
        return F.cross_entropy(hidden[valid] @ self.items[:-1].T, targets[valid])


def torch_median(path, items, length, steps):
    """Returns the median duration of a step in milliseconds. `path` has one history per line, as item numbers."""
    lines = [list(map(int, line.split())) for line in path.read_text().splitlines()]
    longest = max(map(len, lines)) - 1
    # Padded on the left, because positions count from the latest item.
    histories = torch.tensor([[items] * (longest - len(line) + 1) + line[:-1] for line in lines])
    targets = torch.tensor([[-1] * (longest - len(line) + 1) + line[1:] for line in lines])
    torch.manual_seed(1)
    encoder = Encoder(items, length)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    times = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        optimizer.zero_grad()
        encoder(histories, targets).backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - started))
    return sorted(times[1:])[steps // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-torch", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with_torch = not arguments.without_torch
    if with_torch and not torch:
        sys.exit("PyTorch is not installed; `make bench-train` installs it, and --without-torch measures Lodestone alone")
    OUT.mkdir(parents=True, exist_ok=True)
    if with_torch:
        torch.set_num_threads(THREADS)
    print(f"PyTorch {torch.__version__ if with_torch else 'not measured'}, {THREADS} threads, milliseconds of a step\n")
    print("| histories | targets | Lodestone | PyTorch | |\n|---|---|---|---|---|")
    for name, items, batch, length, mean in SHAPES:
        path = OUT / "histories.txt"
        command = [LODESTONE, "benchmark", "encoder-step", "--items", items, "--batch", batch, "--length", length]
        command += ["--width", WIDTH, "--steps", arguments.steps, "--threads", THREADS, "--save", path, "--format", "json"]
        command += ["--mean-length", mean] if mean else []
        lodestone, pytorch = [], []
        for _ in range(arguments.repeats):
            ran = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
            report = json.loads(ran.stdout)
            lodestone.append(report["milliseconds_median"])
            pytorch += [torch_median(path, items, length, arguments.steps)] if with_torch else []
        row = f"| {name} | {report['targets']:,} | {min(lodestone):.0f} |"
        print(f"{row} {min(pytorch):.0f} | {min(pytorch) / min(lodestone):.1f} × |" if pytorch else f"{row} | |")


if __name__ == "__main__":
    main()
