"""Compares the frozen graph with other ANN indexes: `make bench-retrieval`.

Every index has the same vectors, M (or degree) and efConstruction, builds with two threads and searches with one. Each
searches 1,000 queries in one call, as fast as its library allows, at increasing widths until recall@100 is 0.99; its
figure is the best of three passes at that width. Filters leave 1 % of the vectors. Prints a table;
target/bench/retrieval.json has all results.

    retrieval.py [N×D …] [--vectors FILE.npy …] [--bundle DIR]
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TOP = Path(__file__).resolve().parent.parent
LODESTONE = TOP / "target/release/lodestone"
OUT = TOP / "target/bench"
QUERIES, K, M, EF_CONSTRUCTION, RECALL = 1000, 100, 16, 200, 0.99
WIDTHS = [100, 120, 150, 200, 250, 300, 400, 500, 600, 800, 1200]
FILTER_SHARE, FILTER_RECALL, FILTER_QUERIES = 0.01, 0.98, 200
BUILD_THREADS = 2


def best_of(passes, search):
    """Returns the shortest duration in seconds of several passes, and the result of the last."""
    times = []
    for _ in range(passes):
        started = time.perf_counter()
        found = search()
        times.append(time.perf_counter() - started)
    return min(times), found


def recall(found, truth):
    """Returns the mean share of the true neighbours that were found."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth)]))


def exact(base, queries, kept=None):
    """Returns the K rows with the largest inner products for each query, among the rows that `kept` marks."""
    rows = np.arange(len(base)) if kept is None else np.flatnonzero(kept)
    found = []
    for at in range(0, len(queries), 50):
        scores = queries[at : at + 50] @ base[rows].T
        k = min(K, len(rows))
        found.append(rows[np.argpartition(-scores, k - 1, axis=1)[:, :k]])
    return np.concatenate(found)


# Each peer has `build`, which returns bytes per vector, `search`, which returns rows for each query, and where its
# library allows `filtered`, which searches only the rows that `kept` marks.


class Hnswlib:
    name, kind = "hnswlib", "hnsw"

    def build(self, base):
        import hnswlib
        self.index = hnswlib.Index("ip", base.shape[1])
        self.index.init_index(len(base), M=M, ef_construction=EF_CONSTRUCTION, random_seed=1)
        self.index.add_items(base, num_threads=BUILD_THREADS)
        per_vector = base.shape[1] * 4 + 2 * M * 4 + 4 + 8
        return per_vector + (M * 4 + 4) / M

    def search(self, queries, width):
        self.index.set_ef(width)
        return self.index.knn_query(queries, K, num_threads=1)[0]

    def filtered(self, queries, width, kept):
        self.index.set_ef(width)
        return self.index.knn_query(queries, K, num_threads=1, filter=lambda row: kept[row])[0]


class Usearch:
    kind = "hnsw"

    def __init__(self, dtype):
        self.dtype, self.name = dtype, f"usearch {dtype}"

    def build(self, base):
        from usearch.index import Index
        self.index = Index(ndim=base.shape[1], metric="ip", dtype=self.dtype, connectivity=M,
                           expansion_add=EF_CONSTRUCTION, expansion_search=K)
        self.index.add(np.arange(len(base)), base, threads=BUILD_THREADS)
        return self.index.memory_usage / len(base)

    def search(self, queries, width):
        self.index.expansion_search = width
        return self.index.search(queries, K, threads=1).keys


class Faiss:
    name, kind = "faiss", "hnsw"

    def build(self, base):
        import faiss
        self.faiss = faiss
        faiss.omp_set_num_threads(BUILD_THREADS)
        self.index = faiss.IndexHNSWFlat(base.shape[1], M, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = EF_CONSTRUCTION
        self.index.add(base)
        faiss.omp_set_num_threads(1)
        return base.shape[1] * 4 + 2 * M * 4 + 8 + 4

    def search(self, queries, width):
        self.index.hnsw.efSearch = width
        return self.index.search(queries, K)[1]

    def filtered(self, queries, width, kept):
        bits = np.packbits(kept, bitorder="little")
        selector = self.faiss.IDSelectorBitmap(bits)
        parameters = self.faiss.SearchParametersHNSW(sel=selector, efSearch=width)
        return self.index.search(queries, K, params=parameters)[1]


class Voyager:
    name, kind = "voyager", "hnsw"

    def build(self, base):
        import voyager
        self.index = voyager.Index(voyager.Space.InnerProduct, base.shape[1], M=M, ef_construction=EF_CONSTRUCTION,
                                   random_seed=1, max_elements=len(base))
        self.index.add_items(base, num_threads=BUILD_THREADS)
        return base.shape[1] * 4 + 2 * M * 4 + 4 + 8 + 4

    def search(self, queries, width):
        return self.index.query(queries, K, num_threads=1, query_ef=width)[0]


class QdrantEdge:
    name, kind = "qdrant-edge", "hnsw"

    def build(self, base):
        import qdrant_edge as q
        self.q, self.directory = q, tempfile.mkdtemp()
        config = q.EdgeConfig(vectors=q.EdgeVectorParams(size=base.shape[1], distance=q.Distance.Dot),
                              hnsw_config=q.HnswIndexConfig(m=M, ef_construct=EF_CONSTRUCTION, full_scan_threshold=10))
        self.shard = q.EdgeShard.create(self.directory, config)
        kept = keeps(len(base))
        for at in range(0, len(base), 1000):
            rows = range(at, min(at + 1000, len(base)))
            points = [q.Point(row, base[row].tolist(), {"kept": int(kept[row])}) for row in rows]
            self.shard.update(q.UpdateOperation.upsert_points(points))
        self.shard.update(q.UpdateOperation.create_field_index("kept", q.PayloadSchemaType.Integer))
        self.shard.optimize()
        return sum(file.stat().st_size for file in Path(self.directory).rglob("*") if file.is_file()) / len(base)

    def run(self, queries, width, only):
        q = self.q
        parameters = q.SearchParams(hnsw_ef=width)
        requests = (q.SearchRequest(query=q.Query.Nearest(query.tolist()), limit=K, params=parameters, filter=only)
                    for query in queries)
        return [[point.id for point in self.shard.search(request)] for request in requests]

    def search(self, queries, width):
        return self.run(queries, width, None)

    def filtered(self, queries, width, kept):
        q = self.q
        condition = q.FieldCondition("kept", match=q.MatchValue(1))
        return self.run(queries, width, q.Filter(must=[condition]))

    def close(self):
        self.shard.close()
        shutil.rmtree(self.directory)


class Scann:
    name, kind = "scann", "other"

    def build(self, base):
        import scann
        leaves = int(np.sqrt(len(base)))
        self.leaves = leaves
        self.index = (scann.scann_ops_pybind.builder(base, K, "dot_product")
                      .tree(num_leaves=leaves, num_leaves_to_search=leaves // 10, training_sample_size=min(len(base), 250_000))
                      .score_ah(2, anisotropic_quantization_threshold=0.2).reorder(400).build())
        return base.shape[1] * 4 + base.shape[1] / 4 + 8

    def search(self, queries, width):
        share = 0.02 * width / 100
        return self.index.search_batched(queries, final_num_neighbors=K, pre_reorder_num_neighbors=width * 2,
                                         leaves_to_search=max(1, int(self.leaves * share)))[0]


class Svs:
    kind = "other"

    def __init__(self, primary, residual):
        self.bits, self.name = (primary, residual), f"svs LVQ{primary}" + (f"x{residual}" if residual else "")

    def build(self, base):
        # On other processors the library ends the process.
        if "GenuineIntel" not in Path("/proc/cpuinfo").read_text():
            raise RuntimeError("LVQ runs on Intel's processors only")
        import svs
        self.directory = tempfile.mkdtemp()
        svs.write_vecs(base, f"{self.directory}/base.fvecs")
        svs.convert_vecs_to_svs(f"{self.directory}/base.fvecs", f"{self.directory}/base.svs")
        loader = svs.VectorDataLoader(f"{self.directory}/base.svs", svs.DataType.float32, dims=base.shape[1])
        lvq = svs.LVQLoader(loader, primary=self.bits[0], residual=self.bits[1])
        parameters = svs.VamanaBuildParameters(alpha=0.95, graph_max_degree=2 * M, window_size=EF_CONSTRUCTION)
        self.index = svs.Vamana.build(parameters, lvq, svs.DistanceType.MIP, num_threads=BUILD_THREADS)
        self.index.num_threads = 1
        return base.shape[1] * sum(self.bits) / 8 + 8 + 2 * M * 4 + 4

    def search(self, queries, width):
        self.index.search_window_size = width
        return self.index.search(queries, K)[0]

    def close(self):
        shutil.rmtree(self.directory)


PEERS = [Hnswlib(), Usearch("f32"), Usearch("f16"), Usearch("i8"), Faiss(), Voyager(), QdrantEdge(), Scann(),
         Svs(8, 0), Svs(4, 8)]


def keeps(count):
    """Returns a mask of about 1 % of the rows, at random."""
    return np.random.default_rng(7).random(count) < FILTER_SHARE


def measure(peer, base, queries, truth, kept, kept_truth):
    """Builds and searches one index. Returns its figures."""
    started = time.perf_counter()
    bytes_per_vector = peer.build(base)
    result = {"name": peer.name, "kind": peer.kind, "build_s": time.perf_counter() - started,
              "bytes_per_vector": bytes_per_vector}
    for width in WIDTHS:
        result["recall"] = recall(peer.search(queries, width), truth)
        if result["recall"] >= RECALL or width == WIDTHS[-1]:
            seconds, _ = best_of(3, lambda: peer.search(queries, width))
            result |= {"width": width, "queries_per_s": len(queries) / seconds}
            break
    if hasattr(peer, "filtered"):
        filter_queries = queries[:FILTER_QUERIES]
        for width in WIDTHS:
            seconds, found = best_of(1, lambda: peer.filtered(filter_queries, width, kept))
            result |= {"filtered_recall": recall(found, kept_truth), "filtered_queries_per_s": len(filter_queries) / seconds}
            if result["filtered_recall"] >= FILTER_RECALL:
                break
    if hasattr(peer, "close"):
        peer.close()
    return result


def ours(vectors, precision):
    """Returns the figures of the frozen graph, measured by `lodestone benchmark ann`."""
    command = [LODESTONE, "benchmark", "ann", "--vectors", vectors, "--m", str(M), "--ef-construction",
               str(EF_CONSTRUCTION), "--count", str(K), "--threads", str(BUILD_THREADS), "--precision", precision,
               "--format", "json"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    last = report["runs"][-1]
    filtered = next(run for run in report["filtered"] if run["selectivity"] == FILTER_SHARE and not run["correlated"])
    held = report["walked_bytes_per_vector"] + report["exact_bytes_per_vector"]
    return {"name": f"lodestone {precision}", "kind": "ours", "build_s": report["build_seconds"], "bytes_per_vector": held,
            "recall": last["recall"], "width": last["ef"], "queries_per_s": last["queries_per_s"],
            "filtered_recall": filtered["recall"], "filtered_queries_per_s": filtered["queries_per_s"],
            "open_s": report["open_seconds"], "report": report}


def show(name, results):
    """Prints the table of one set of vectors, and ratios of our figures to the best of the peers."""
    print(f"\n{name}\n{'':<16} {'build s':>8} {'bytes':>6} {'recall':>7} {'width':>6} {'queries/s':>10}   "
          f"{'1 % recall':>10} {'queries/s':>10}")
    for r in results:
        if "error" in r:
            print(f"{r['name']:<16} {r['error']}")
            continue
        missed = "" if r["recall"] >= RECALL else "  recall not reached"
        filtered = (f"{r['filtered_recall']:>10.4f} {r['filtered_queries_per_s']:>10.0f}" if "filtered_recall" in r else "")
        print(f"{r['name']:<16} {r['build_s']:>8.1f} {r['bytes_per_vector']:>6.0f} {r['recall']:>7.4f} {r['width']:>6} "
              f"{r['queries_per_s']:>10.0f}   {filtered}{missed}")
    others = [r for r in results if "error" not in r and r["kind"] != "ours"]
    reached = [r for r in others if r["recall"] >= RECALL]

    def against(mine, label, group, key, least=False):
        group = [r for r in group if key in r]
        if group:
            best = (min if least else max)(group, key=lambda r: r[key])
            print(f"    {label}: {mine[key] / best[key]:.2f} × {best['name']}")

    for mine in (r for r in results if r["kind"] == "ours" and r["recall"] >= RECALL):
        print(f"  {mine['name']}")
        hnsw = [r for r in others if r["kind"] == "hnsw"]
        against(mine, "queries/s against the best HNSW", [r for r in hnsw if r in reached], "queries_per_s")
        against(mine, "queries/s against the best of any kind", reached, "queries_per_s")
        against(mine, "build time against the fastest HNSW", hnsw, "build_s", least=True)
        against(mine, "bytes per vector against the smallest", reached, "bytes_per_vector", least=True)
        good = [r for r in others if r.get("filtered_recall", 0) >= FILTER_RECALL]
        against(mine, "filtered queries/s against the best", good, "filtered_queries_per_s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*")
    parser.add_argument("--vectors", nargs="*", type=Path, default=[])
    parser.add_argument("--bundle", type=Path, help="adds the item vectors of this bundle")
    parser.add_argument("--peers", help="measures only these peers, separated by commas; fails if one fails")
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = str(BUILD_THREADS)
    sets = [(str(path.name), path) for path in arguments.vectors]
    for size in arguments.sizes:
        path = OUT / f"vectors-{size.replace('×', 'x')}.npy"
        if not path.exists():
            subprocess.run([LODESTONE, "benchmark", "ann", "--synthetic", size, "--save", path], check=True)
        sets.append((size, path))
    if arguments.bundle:
        subprocess.run([LODESTONE, "bundle", "export-vectors", "--bundle", arguments.bundle, "--out", OUT / "vectors"], check=True,
                       stdout=subprocess.DEVNULL)
        sets.append((f"item vectors of {arguments.bundle}", OUT / "vectors/item_vectors.npy"))
    everything = {}
    for name, path in sets:
        vectors = np.load(path)
        base, queries = vectors[:-QUERIES], vectors[-QUERIES:]
        kept = keeps(len(base))
        truth, kept_truth = exact(base, queries), exact(base, queries[:FILTER_QUERIES], kept)
        results = [ours(path, precision) for precision in ("f32", "int12", "int8")]
        for peer in PEERS:
            if arguments.peers and peer.name.split()[0] not in arguments.peers.split(","):
                continue
            try:
                results.append(measure(peer, base, queries, truth, kept, kept_truth))
            except Exception as error:  # The table reports a peer that fails, and the others are measured.
                results.append({"name": peer.name, "kind": peer.kind, "error": f"{type(error).__name__}: {str(error)[:150]}"})
            if hasattr(peer, "index"):
                del peer.index
        show(name, results)
        sys.stdout.flush()
        everything[name] = results
        (OUT / "retrieval.json").write_text(json.dumps(everything, indent=2))
        failed = [f"{result['name']}: {result['error']}" for result in results if "error" in result]
        if arguments.peers and failed:
            sys.exit(f"selected peers failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
