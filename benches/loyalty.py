"""Compares the maximum likelihood fit of BG/NBD with the Python package lifetimes: `make bench-loyalty`.

Both fit the same simulated customers, with the published parameters of CDNOW (docs/loyalty.md). lifetimes is timed
twice: with one row per customer, as its documentation shows, and with equal rows merged and weighted before the clock
starts, which Lodestone does inside its time. Prints times, parameters and log-likelihoods, and fails if the
log-likelihoods differ by more than 1 in 10,000,000 per customer.

    loyalty.py [--customers N] [--repeats N]

--repeats is the number of Lodestone's fits, whose median counts; lifetimes is timed once.
"""
import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy
import pandas
from lifetimes import BetaGeoFitter

TOP = Path(__file__).resolve().parent.parent
LODESTONE = TOP / "target/release/lodestone"
OUT = TOP / "target/bench"
# Largest difference of the log-likelihoods, per customer.
TOLERANCE = 1e-7
PARAMETERS = ["r", "alpha", "a", "b"]


def fit(customers, weights=None):
    """Returns lifetimes' seconds, parameters and total log-likelihood."""
    fitter = BetaGeoFitter()
    started = time.perf_counter()
    fitter.fit(customers["frequency"], customers["recency"], customers["age"], weights=weights)
    seconds = time.perf_counter() - started
    # The fitter's own log-likelihood is of rescaled times, so it is computed again.
    weights = numpy.ones(len(customers)) if weights is None else weights.to_numpy()
    columns = [customers[name].to_numpy() for name in ["frequency", "recency", "age"]]
    parameters = [fitter.params_[name] for name in PARAMETERS]
    mean = BetaGeoFitter._negative_log_likelihood(numpy.log(parameters), *columns, weights, 0.0)
    return seconds, dict(zip(PARAMETERS, parameters)), -mean * weights.sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--customers", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "customers.csv"
    command = [LODESTONE, "benchmark", "loyalty-fit", "--customers", arguments.customers, "--save", path]
    command += ["--repeats", arguments.repeats, "--format", "json"]
    ran = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    report = json.loads(ran.stdout)
    model = report["model"]
    customers = pandas.read_csv(path)
    merged = customers.groupby(["frequency", "recency", "age"], as_index=False).size()
    print(f"{arguments.customers:,} customers, {len(merged):,} different summaries, {os.cpu_count()} processors\n")
    print("| fit | seconds | r | alpha | a | b | log-likelihood | |\n|---|---|---|---|---|---|---|---|")

    def row(name, seconds, of, log_likelihood):
        parameters = " | ".join(f"{of[key]:.4f}" for key in PARAMETERS)
        print(f"| {name} | {seconds:.3f} | {parameters} | {log_likelihood:,.2f} | {seconds / report['seconds']:.0f} × |",
              flush=True)

    row("Lodestone", report["seconds"], model, model["log_likelihood"])
    differences = []
    for name, rows, weights in [("lifetimes", customers, None), ("lifetimes, merged rows", merged, merged["size"])]:
        seconds, of, log_likelihood = fit(rows, weights)
        row(name, seconds, of, log_likelihood)
        differences.append(abs(log_likelihood - model["log_likelihood"]) / arguments.customers)
    if max(differences) > TOLERANCE:
        sys.exit(f"the log-likelihoods differ by up to {max(differences):.1e} per customer; the limit is {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
