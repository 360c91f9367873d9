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

# The base has libstdc++, which libonnxruntime.so needs, because apt needs it too; so no package is installed.
FROM debian:12.11-slim
LABEL org.opencontainers.image.title="lodestone" \
      org.opencontainers.image.description="A gRPC ranking engine for online shops" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 lodestone \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin lodestone \
    && install -d -m 0700 -o 10001 -g 10001 /data
# The authorities of TLS connections to object stores and other services.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=onnxruntime /out/onnxruntime/libonnxruntime.so /opt/onnxruntime/libonnxruntime.so
COPY --from=build /out/lodestone /usr/local/bin/lodestone
COPY LICENSE /usr/share/doc/lodestone/LICENSE
ENV ORT_DYLIB_PATH=/opt/onnxruntime/libonnxruntime.so
# Microsoft's builds of the library collect telemetry unless this is set.
ENV ORT_DISABLE_TELEMETRY=1
USER 10001:10001
VOLUME /data
EXPOSE 50051
# The platform probes health, over gRPC or HTTP.
HEALTHCHECK NONE
ENTRYPOINT ["lodestone"]
CMD ["serve", "--bundle", "/bundle", "--data", "/data", "--listen", "0.0.0.0:50051"]
