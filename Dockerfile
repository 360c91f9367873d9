# syntax=docker/dockerfile:1
# The image of `lodestone`, which serves, imports and trains. docs/deploy.md describes how to build and run it.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY crates crates
COPY proto proto
COPY src src
# GET /version reports it; see docs/observability.md.
ARG GIT_COMMIT=
ENV LODESTONE_GIT_COMMIT=$GIT_COMMIT
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked \
    && install -D target/release/lodestone /out/lodestone

# The pinned wheel, with the same hash as outside of containers.
FROM python:3.11-slim-bookworm AS onnxruntime
WORKDIR /src
COPY scripts/tools.sh scripts/tools.sh
COPY scripts/requirements scripts/requirements
RUN LODESTONE_TOOLS=/out scripts/tools.sh onnxruntime

FROM debian:bookworm-slim
# libstdc++6, because libonnxruntime.so is C++; ca-certificates for stores and key sets with https.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 lodestone \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin lodestone \
    && install -d -o 10001 -g 10001 /data
COPY --from=onnxruntime /out/onnxruntime/libonnxruntime.so /opt/onnxruntime/libonnxruntime.so
COPY --from=build /out/lodestone /usr/local/bin/lodestone
COPY LICENSE /usr/share/doc/lodestone/LICENSE
ENV ORT_DYLIB_PATH=/opt/onnxruntime/libonnxruntime.so
# Microsoft's builds of the library collect telemetry unless this is set.
ENV ORT_DISABLE_TELEMETRY=1
USER 10001:10001
VOLUME /data
EXPOSE 50051
# The platform probes health over gRPC (grpc.health.v1).
HEALTHCHECK NONE
ENTRYPOINT ["lodestone"]
CMD ["serve", "--bundle", "/bundle", "--data", "/data", "--listen", "0.0.0.0:50051"]
