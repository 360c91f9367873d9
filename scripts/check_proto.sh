#!/usr/bin/env bash
# Checks that every proto file names the packages of its generated code, and that the proto files break no client of the
# last tagged version.
#
#   scripts/check_proto.sh BUF [REF]
#
# REF: the commit to compare with, instead of the last tag.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
buf=$1 ref=${2:-}

for file in proto/lodestone/v1/*.proto; do
    for option in csharp_namespace go_package java_multiple_files java_package; do
        grep -q "^option $option = " "$file" || { echo "$file has no option $option" >&2; exit 1; }
    done
done

if [ "$(git rev-parse --show-toplevel 2>/dev/null)" != "$PWD" ]; then
    echo "This is not a git checkout, so the proto files are not compared with an earlier version."
    exit
fi
if [ -z "$ref" ] && ! ref=$(git describe --tags --abbrev=0 2>/dev/null); then
    echo "The repository has no tag, so the proto files are not compared with an earlier version."
    exit
fi
# An archive, because buf clones a repository and cannot do so from a linked work tree.
base=$(mktemp -d)
trap 'rm -rf "$base"' EXIT
git archive "$ref" proto | tar -x -C "$base"
"$buf" breaking proto --against "$base/proto" || {
    echo "The proto files break clients of $ref." >&2
    exit 1
}
echo "The proto files break no client of $ref."
