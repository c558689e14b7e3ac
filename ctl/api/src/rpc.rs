//! One line of JSON-RPC 2.0.

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use crate::error::{ErrorCode, RpcError};
use crate::request::Call;

/// A request's id, which its response repeats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// A number, which comes back as it was written.
    Number(Number),
    /// A string.
    Text(String),
    /// In a response only: the request's id could not be read.
    Null,
}

impl From<u64> for Id {
    fn from(number: u64) -> Id {
        Id::Number(number.into())
    }
}

/// A request: a line that can be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// To be repeated in the response.
    pub id: Id,
    /// What is asked.
    pub call: Call,
}

/// A response: one line.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The request's.
    pub id: Id,
    /// The method's result, or why there is none.
    pub outcome: Result<Value, RpcError>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine {
    jsonrpc: String,
    id: Id,
    method: String,
    #[serde(default = "empty_object")]
    params: Value,
}

#[derive(Serialize, Deserialize)]
struct ResponseLine {
    jsonrpc: String,
    id: Id,
    // `null` is a result; only a missing one is none.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<RpcError>,
}

impl Request {
    /// Parses a line. What cannot be understood comes back as the response to send.
    pub fn parse(line: &[u8]) -> Result<Request, Box<Response>> {
        let refuse = |id, error| Box::new(Response { id, outcome: Err(error) });
        let value: Value = serde_json::from_slice(line).map_err(|error| {
            let message = format!("the line is not JSON: {error}");
            refuse(Id::Null, RpcError::new(ErrorCode::Parse, message))
        })?;
        let id = value.get("id").and_then(|id| Id::deserialize(id).ok()).unwrap_or(Id::Null);
        let parsed = RequestLine::deserialize(value).map_err(|error| {
            let message = format!("not a JSON-RPC request: {error}");
            refuse(id.clone(), RpcError::new(ErrorCode::InvalidRequest, message))
        })?;
        if parsed.jsonrpc != "2.0" || id == Id::Null {
            let message = "not a JSON-RPC request: \"jsonrpc\" is \"2.0\", and there is an id";
            return Err(refuse(id, RpcError::new(ErrorCode::InvalidRequest, message)));
        }
        let call = Call::parse(&parsed.method, parsed.params);
        call.map(|call| Request { id: id.clone(), call }).map_err(|error| refuse(id, error))
    }

    /// The request as a line, with its line feed.
    pub fn to_line(&self) -> Vec<u8> {
        let line = RequestLine {
            jsonrpc: "2.0".to_owned(),
            id: self.id.clone(),
            method: self.call.method().to_owned(),
            params: self.call.params().unwrap_or_else(|_| empty_object()),
        };
        to_line(&line)
    }
}

impl Response {
    /// The response of a call that succeeded.
    pub fn result(id: Id, result: &impl Serialize) -> Response {
        let outcome = serde_json::to_value(result)
            .map_err(|error| RpcError::new(ErrorCode::Internal, error.to_string()));
        Response { id, outcome }
    }

    /// The response of a call that failed.
    pub fn error(id: Id, error: RpcError) -> Response {
        Response { id, outcome: Err(error) }
    }

    /// Parses a line that the daemon sent.
    pub fn parse(line: &[u8]) -> Result<Response, serde_json::Error> {
        let parsed: ResponseLine = serde_json::from_slice(line)?;
        let outcome = match (parsed.result, parsed.error) {
            (Some(result), None) => Ok(result),
            (None, Some(error)) => Err(error),
            _ => return Err(serde::de::Error::custom("neither a result nor an error")),
        };
        Ok(Response { id: parsed.id, outcome })
    }

    /// The response as a line, with its line feed.
    pub fn to_line(&self) -> Vec<u8> {
        let (result, error) = match &self.outcome {
            Ok(result) => (Some(result.clone()), None),
            Err(error) => (None, Some(error.clone())),
        };
        to_line(&ResponseLine { jsonrpc: "2.0".to_owned(), id: self.id.clone(), result, error })
    }
}

fn to_line(value: &impl Serialize) -> Vec<u8> {
    // Serializing these types cannot fail: no map has keys other than strings, and writing to
    // memory has no errors.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{BdevCreate, BdevKind, METHODS, Nothing};
    use proptest::prelude::*;

    #[track_caller]
    fn refused(line: &str) -> (Id, RpcError) {
        let response = Request::parse(line.as_bytes()).expect_err(line);
        (response.id, response.outcome.unwrap_err())
    }

    fn field_of(method: &str, params: &str) -> String {
        let line = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
        let (id, error) = refused(&line);
        assert_eq!((id, error.code), (Id::from(1), ErrorCode::InvalidParams), "{error}");
        error.data.unwrap().field.unwrap()
    }

    #[test]
    fn a_request_survives_the_wire() {
        let create = BdevCreate {
            kind: BdevKind::Ram,
            name: "ram0".into(),
            size_bytes: Some(1 << 20),
            block_bytes: 512,
            path: None,
        };
        for call in [Call::Version(Nothing {}), Call::BdevCreate(create)] {
            let request = Request { id: Id::Text("a".into()), call };
            assert_eq!(Request::parse(&request.to_line()), Ok(request));
        }
    }

    #[test]
    fn any_number_or_string_is_an_id() {
        for id in ["-1", "1.5", "18446744073709551615", "\"\"", "\"a\""] {
            let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"version"}}"#);
            let request = Request::parse(line.as_bytes()).expect(id);
            let response = Response::result(request.id, &Nothing {}).to_line();
            assert!(
                String::from_utf8(response).unwrap().contains(&format!("\"id\":{id},")),
                "{id}"
            );
        }
    }

    #[test]
    fn every_method_is_known_and_its_params_are_closed() {
        for method in METHODS {
            let params = r#"{"surely_unknown":1}"#;
            let field = field_of(method, params);
            assert!(field == "surely_unknown" || field == "params", "{method}: {field}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert_eq!(refused("{").1.code, ErrorCode::Parse);
        assert_eq!(refused("").1.code, ErrorCode::Parse);
        for line in [
            "1",
            "[]",
            r#"{"jsonrpc":"2.0","method":"version"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"version"}"#,
            r#"{"jsonrpc":"2.0","id":true,"method":"version"}"#,
            r#"{"jsonrpc":"2.0","id":[],"method":"version"}"#,
            r#"{"jsonrpc":"1.0","id":7,"method":"version"}"#,
            r#"{"jsonrpc":"2.0","id":7,"method":"version","more":1}"#,
        ] {
            assert_eq!(refused(line).1.code, ErrorCode::InvalidRequest, "{line}");
        }
        let (id, error) = refused(r#"{"jsonrpc":"2.0","id":7,"method":"nothing.such"}"#);
        assert_eq!((id, error.code), (Id::from(7), ErrorCode::UnknownMethod));
    }

    #[test]
    fn bad_params_name_the_field() {
        let nqn = "nqn.2026-11.io.forebay:a";
        for (method, params, field) in [
            ("version", "[]".to_owned(), "params"),
            ("device.bind", r#"{"bdf":5}"#.to_owned(), "bdf"),
            ("device.bind", r#"{"bdf":"0000:00:04.0","force":"yes"}"#.to_owned(), "force"),
            ("device.release", r#"{"bdf":"x"}"#.to_owned(), "bdf"),
            ("bdev.create", r#"{"kind":"tape","name":"a"}"#.to_owned(), "kind"),
            ("bdev.create", r#"{"kind":"ram","name":"a"}"#.to_owned(), "size_bytes"),
            ("bdev.create", r#"{"kind":"ram","name":"a","size_bytes":5}"#.into(), "size_bytes"),
            ("bdev.create", r#"{"kind":"ram","name":"a","size_bytes":-5}"#.into(), "size_bytes"),
            ("bdev.create", r#"{"kind":"ram","name":"/","size_bytes":4096}"#.into(), "name"),
            ("bdev.create", r#"{"kind":"null","name":"a","block_bytes":7}"#.into(), "block_bytes"),
            ("bdev.create", r#"{"kind":"file","name":"a"}"#.to_owned(), "path"),
            ("bdev.create", r#"{"kind":"file","name":"a","path":"b"}"#.to_owned(), "path"),
            ("export.add", r#"{"bdev":"a","nqn":"b"}"#.to_owned(), "nqn"),
            ("export.add", r#"{"bdev":"a","nsid":0}"#.to_owned(), "nsid"),
            ("export.add", format!(r#"{{"bdev":"a","hosts":["{nqn}","b"]}}"#), "hosts[1]"),
            ("export.add", r#"{"bdev":"a","listeners":["host:1"]}"#.to_owned(), "listeners[0]"),
            ("export.add", r#"{"bdev":"a","listeners":["1.2.3.4:0"]}"#.into(), "listeners[0]"),
            ("host.allow", format!(r#"{{"nqn":"{nqn}","host":""}}"#), "host"),
            ("log.level", r#"{"level":"loud"}"#.to_owned(), "level"),
        ] {
            assert_eq!(field_of(method, &params), field, "{method} {params}");
        }
    }

    #[test]
    fn responses_survive_the_wire() {
        let good = Response::result(Id::from(1), &Nothing {});
        assert_eq!(good.to_line(), b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n");
        let null = Response::result(Id::from(2), &());
        let bad = Response::error(Id::Null, RpcError::invalid("bdf", "is missing"));
        for response in [good, null, bad] {
            assert_eq!(Response::parse(&response.to_line()).unwrap(), response);
        }
        assert!(Response::parse(br#"{"jsonrpc":"2.0","id":1}"#).is_err());
    }

    proptest! {
        #[test]
        fn no_line_panics(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&line);
            let _ = Response::parse(&line);
        }
    }
}
