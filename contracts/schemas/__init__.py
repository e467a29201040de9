"""JSON Schemas and the AsyncAPI document, made from the models. `python -m contracts.schemas` writes them here."""

from typing import Any, Literal

from pydantic import BaseModel

from contracts import events
from contracts.measurement import CellMeasurement
from contracts.patch import CellMeasurementPatch

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = "#/components/schemas/{model}"
_TEXT: Schema = {"type": "string", "minLength": 1}


def documents() -> dict[str, Schema]:
    """File name → what it holds. Header schemas describe a header's bytes read as UTF-8."""
    patch = CellMeasurementPatch.model_json_schema()
    definitions = patch.pop("$defs")
    return {
        "patch.json": {"$schema": _DIALECT, **patch, "$defs": definitions},
        "measurement.json": {"$schema": _DIALECT, **CellMeasurement.model_json_schema(mode="serialization")},
        "update-structured.json": {
            "$schema": _DIALECT,
            **_structured_update({"$ref": "#/$defs/CellMeasurementPatch"}),
            "$defs": {**definitions, "CellMeasurementPatch": patch},
        },
        "update-headers.json": {"$schema": _DIALECT, **_update_headers()},
        "updated-headers.json": {"$schema": _DIALECT, **_updated_headers()},
        "rejected-headers.json": {"$schema": _DIALECT, **_rejected_headers()},
        "rejection-detail.json": {"$schema": _DIALECT, **_rejection_detail()},
        "asyncapi.json": _asyncapi(),
    }


def _object(
    title: str, required: dict[str, Schema], optional: dict[str, Schema], description: str = ""
) -> Schema:
    about = {"description": description} if description else {}
    return {
        "title": title,
        **about,
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": True,
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _number(meaning: str) -> Schema:
    return {"type": "string", "pattern": "^[0-9]+$", "description": meaning}


_REVISION = _number("0 to 2^63-1; rejected with `revision_conflict` unless it is the current revision")
_ORGANIZATION: Schema = {**_TEXT, "description": "must be the measurement's"}
_TRACEPARENT: Schema = {"type": "string", "description": "W3C Trace Context; passed on"}


def _structured_update(data: Schema) -> Schema:
    required: dict[str, Schema] = {
        "specversion": {"const": events.SPECVERSION},
        "type": {"const": events.UPDATE_TYPE},
        "id": {**_TEXT, "description": "with source and measurement id: the event's identity"},
        "source": _TEXT,
        "data": data,
    }
    optional = {
        "subject": _or_null({**_TEXT, "description": "the measurement id, where the record has no key"}),
        "datacontenttype": _or_null(
            {"type": "string", "description": f"{events.JSON_MEDIA_TYPE}, parameters and case aside"}
        ),
        "time": {"description": "not looked at"},
        "expectedrevision": _or_null(
            {"anyOf": [_REVISION, {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}]}
        ),
        "organizationid": _or_null(_ORGANIZATION),
        "traceparent": {"description": "passed on where it is a string"},
        "data_base64": {"type": "null", "description": "the body is JSON, in data"},
    }
    return _object(
        "MeasurementUpdateEnvelope", required, optional, "A measurement update as structured CloudEvent"
    )


def _update_headers() -> Schema:
    required: dict[str, Schema] = {
        events.CE_SPECVERSION: {"const": events.SPECVERSION},
        events.CE_TYPE: {"const": events.UPDATE_TYPE},
        events.CE_ID: {**_TEXT, "description": "with source and measurement id: the event's identity"},
        events.CE_SOURCE: _TEXT,
    }
    optional: dict[str, Schema] = {
        events.CONTENT_TYPE: {
            "type": "string",
            "description": f"{events.JSON_MEDIA_TYPE}; missing means the same",
        },
        events.CE_SUBJECT: {**_TEXT, "description": "the measurement id, where the record has no key"},
        events.CE_TIME: {"type": "string", "description": "not looked at"},
        events.CE_EXPECTEDREVISION: _REVISION,
        events.CE_ORGANIZATIONID: _ORGANIZATION,
        events.TRACEPARENT: _TRACEPARENT,
        events.REQUEUED_FROM: {
            "type": "string",
            "pattern": "^[^/]+/[0-9]+/[0-9]+@[0-9]+$",
            "description": "of a rejected event sent again: topic/partition/offset@arrival of its first position",
        },
        events.REAPPLY: {"type": "string", "description": "id of a replay run: joins the event's identity"},
    }
    return _object(
        "MeasurementUpdateHeaders", required, optional, "A measurement update as binary CloudEvent"
    )


def _updated_headers() -> Schema:
    required: dict[str, Schema] = {
        events.CE_SPECVERSION: {"const": events.SPECVERSION},
        events.CE_TYPE: {"const": events.UPDATED_TYPE},
        events.CE_ID: {**_TEXT, "description": "the same for the same causing record, whenever it is sent"},
        events.CE_SOURCE: {**_TEXT, "description": "the worker's configured name"},
        events.CE_SUBJECT: {**_TEXT, "description": "the measurement id"},
        events.CE_TIME: {"type": "string", "format": "date-time", "description": "updated_at"},
        events.CONTENT_TYPE: {"const": events.JSON_MEDIA_TYPE},
        events.CE_REVISION: _number("rises by one where something changed"),
        events.CE_CHANGED: {"type": "string", "description": "comma-separated names of fields; may be empty"},
        events.CE_CAUSATIONID: {**_TEXT, "description": "id of the event that caused it"},
        events.CE_CAUSATIONSOURCE: {**_TEXT, "description": "its source; kafka:<topic> for a bare event"},
    }
    return _object("MeasurementUpdatedHeaders", required, {events.TRACEPARENT: _TRACEPARENT})


def _rejected_headers() -> Schema:
    required: dict[str, Schema] = {
        events.REJECTION_CODE: {"enum": list(events.REJECTION_CODES)},
        events.REJECTION_DETAIL: {
            "type": "string",
            "contentMediaType": events.JSON_MEDIA_TYPE,
            "contentSchema": _rejection_detail(),
        },
        events.REJECTION_TOPIC: {**_TEXT, "description": "where the record stood in the input"},
        events.REJECTION_PARTITION: _number("likewise"),
        events.REJECTION_OFFSET: _number("likewise"),
        events.REJECTION_TIMESTAMP: _number("the record's arrival, in milliseconds since 1970"),
    }
    truncated = _object(
        "RejectionTruncated",
        {
            "length": {"type": "integer", "description": "of the whole value, in bytes"},
            "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "of the whole value"},
        },
        {"left_out": {"type": "array", "items": {"enum": ["key", "headers"]}}},
    )
    optional: dict[str, Schema] = {
        events.REJECTION_TRUNCATED: {
            "type": "string",
            "contentMediaType": events.JSON_MEDIA_TYPE,
            "contentSchema": truncated,
        }
    }
    return _object("UpdateRejectedHeaders", required, optional, "Beside the headers as they were received")


def _rejection_detail() -> Schema:
    violation = _object(
        "Violation",
        {
            "path": {
                "type": "string",
                "description": "a path of the PATCH body ($.test_setup.channel_number), key, headers, "
                "the name of a header or attribute, or value (an envelope that is no object)",
            },
            "expected": {"type": "string"},
            "found": {"description": "any JSON value, shortened"},
        },
        {},
    )
    required: dict[str, Schema] = {
        "message": {"type": "string", "description": "for a person"},
        "violations": {"type": "array", "items": violation, "description": "the first ones"},
        "total": {"type": "integer", "minimum": 0, "description": "how many violations there are"},
    }
    return _object("RejectionDetail", required, {}, f"At most {events.MAX_DETAIL_BYTES} bytes of JSON")


# FastStream's generator isn't used: it knows payloads only, and here half of the contract is in keys and headers.
def _asyncapi() -> Schema:
    key: Schema = {
        "kafka": {"key": {**_TEXT, "description": "the measurement id"}, "bindingVersion": "0.5.0"}
    }
    json_type = events.JSON_MEDIA_TYPE
    messages: Schema = {
        "BinaryUpdate": {
            "title": "A measurement update, binary CloudEvent",
            "contentType": json_type,
            "headers": _update_headers(),
            "payload": _reference("CellMeasurementPatch"),
            "bindings": key,
        },
        "StructuredUpdate": {
            "title": "A measurement update, structured CloudEvent",
            "contentType": events.STRUCTURED_MEDIA_TYPE,
            "headers": _object(
                "StructuredHeaders", {events.CONTENT_TYPE: {"const": events.STRUCTURED_MEDIA_TYPE}}, {}
            ),
            "payload": _reference("MeasurementUpdateEnvelope"),
            "bindings": key,
        },
        "BareUpdate": {
            "title": "A measurement update without CloudEvents attributes: its identity is its position",
            "contentType": json_type,
            "payload": _reference("CellMeasurementPatch"),
            "bindings": key,
        },
        "MeasurementUpdated": {
            "title": "A measurement after an update was applied",
            "contentType": json_type,
            "headers": _updated_headers(),
            "payload": _reference("CellMeasurement"),
            "bindings": key,
        },
        "UpdateRejected": {
            "title": "A rejected update as it was received, and why",
            "contentType": "application/octet-stream",
            "headers": _rejected_headers(),
            "payload": {"description": "the value as received, byte for byte, or its start"},
        },
    }
    channels = {
        "updates": ("measurement-updates", ["BinaryUpdate", "StructuredUpdate", "BareUpdate"]),
        "updated": ("measurement-updated", ["MeasurementUpdated"]),
        "rejected": ("measurement-updates-rejected", ["UpdateRejected"]),
    }
    operations = {
        "applyUpdates": ("receive", "updates", "Decides each record once: applied, duplicate or rejected"),
        "announceUpdated": ("send", "updated", "One answer for each applied update"),
        "announceRejected": ("send", "rejected", "One answer for each rejected update"),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Measurement updates",
            "version": "1.0.0",
            "description": "What the worker receives and sends, with the default names of its topics. "
            "CloudEvents 1.0 in the Kafka protocol binding.",
        },
        "defaultContentType": json_type,
        "channels": {
            name: {
                "address": topic,
                "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in carried},
                "bindings": {"kafka": {"topic": topic, "bindingVersion": "0.5.0"}},
            }
            for name, (topic, carried) in channels.items()
        },
        "operations": {
            name: {
                "action": action,
                "channel": {"$ref": f"#/channels/{channel}"},
                "summary": summary,
                "messages": [
                    {"$ref": f"#/channels/{channel}/messages/{message}"} for message in channels[channel][1]
                ],
            }
            for name, (action, channel, summary) in operations.items()
        },
        "components": {
            "messages": messages,
            "schemas": {
                **_component(CellMeasurementPatch, "validation"),
                **_component(CellMeasurement, "serialization"),
                "MeasurementUpdateEnvelope": _structured_update(_reference("CellMeasurementPatch")),
            },
        },
    }


def _component(model: type[BaseModel], mode: Literal["validation", "serialization"]) -> dict[str, Schema]:
    schema = model.model_json_schema(ref_template=_REFERENCE, mode=mode)
    return {**schema.pop("$defs", {}), model.__name__: schema}


def _reference(model: str) -> Schema:
    return {"$ref": _REFERENCE.format(model=model)}
