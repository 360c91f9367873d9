"""Receives OpenTelemetry traces over gRPC and appends each span to a file, as a line of JSON.

Usage: otlp_receiver.py FILE. Prints the port on 127.0.0.1 when it is ready. Runs until it is killed.
"""
import concurrent.futures
import json
import sys
import threading

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


def values(attributes):
    """Returns the values of attributes by name."""
    def value(of):
        return getattr(of, of.WhichOneof("value"))

    return {attribute.key: value(attribute.value) for attribute in attributes}


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, path):
        # The buffer holds the spans of a request, so that they appear at once.
        self.file, self.lock = open(path, "a", buffering=1 << 24, encoding="utf-8"), threading.Lock()

    def Export(self, request, context):
        with self.lock:
            for of_resource in request.resource_spans:
                resource = values(of_resource.resource.attributes)
                for of_scope in of_resource.scope_spans:
                    for span in of_scope.spans:
                        self.write(span, resource, of_scope.scope)
            self.file.flush()
        return trace_service_pb2.ExportTraceServiceResponse()

    def write(self, span, resource, scope):
        print(json.dumps({
            "trace": span.trace_id.hex(), "id": span.span_id.hex(), "parent": span.parent_span_id.hex(), "name": span.name,
            "kind": span.kind, "begin": span.start_time_unix_nano, "end": span.end_time_unix_nano,
            "status": span.status.code, "attributes": values(span.attributes), "resource": resource, "scope": scope.name,
        }), file=self.file)


server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Receiver(sys.argv[1]), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
