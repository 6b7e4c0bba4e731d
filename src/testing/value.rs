//! Arguments and results of all methods in one comparable and printable form.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::stats::StorageResourceReport;
use wacore::store::Device;
use wacore::store::traits::{
    AppStateSyncKey, DeviceListRecord, LidPnMappingEntry, MsgSecretEntry, PendingInboundKey, PendingInboundRow,
    TcTokenEntry,
};

/// An argument or a result of a storage method.
///
/// `Debug` and `Display` print it on one line and shorten byte strings. They print everything else in full, so never
/// print a value outside tests.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Value {
    /// `()` or `None`.
    Nothing,
    /// A `bool`.
    Flag(bool),
    /// An integer of any width.
    Number(i128),
    /// A string of any type.
    Text(String),
    /// A byte string of any type.
    Bytes(Vec<u8>),
    /// A slice, a vector or a tuple, or the entries of a map, sorted.
    List(Vec<Value>),
    /// A struct: its fields by name, sorted. Fields that upstream does not serialize are missing.
    Record(Vec<(String, Value)>),
}

impl Value {
    /// The field of a record; `None` if this is not a record or has no such field.
    pub fn field(&self, name: &str) -> Option<&Value> {
        let Value::Record(fields) = self else { return None };
        fields.iter().find_map(|(field, value)| (field == name).then_some(value))
    }

    /// Sorts the entries of a list, for methods that promise no order. All other values stay unchanged.
    #[must_use]
    pub fn sorted(self) -> Value {
        match self {
            Value::List(mut values) => {
                values.sort();
                Value::List(values)
            }
            value => value,
        }
    }

    fn record<const FIELDS: usize>(fields: [(&str, &dyn ToValue); FIELDS]) -> Value {
        let mut fields = fields.map(|(name, value)| (name.to_owned(), value.to_value()));
        fields.sort();
        Value::Record(fields.into())
    }

    /// Structs are converted through JSON, so that a field that upstream adds is compared as well.
    fn serialized(value: impl serde::Serialize) -> Value {
        serde_json::to_value(value).map_or_else(|error| Value::Text(error.to_string()), Value::from_json)
    }

    fn from_json(json: serde_json::Value) -> Value {
        use serde_json::Value as Json;
        match json {
            Json::Null => Value::Nothing,
            Json::Bool(flag) => Value::Flag(flag),
            Json::Number(number) => {
                let integer = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
                integer.map_or_else(|| Value::Text(number.to_string()), Value::Number)
            }
            Json::String(text) => Value::Text(text),
            Json::Array(values) => {
                let byte = |value: &Json| value.as_u64().and_then(|number| u8::try_from(number).ok());
                let bytes: Option<Vec<u8>> = values.iter().map(byte).collect();
                match bytes {
                    Some(bytes) => Value::Bytes(bytes),
                    None => Value::List(values.into_iter().map(Value::from_json).collect()),
                }
            }
            Json::Object(fields) => {
                let mut fields: Vec<_> =
                    fields.into_iter().map(|(name, value)| (name, Value::from_json(value))).collect();
                fields.sort();
                Value::Record(fields)
            }
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Nothing => f.write_str("-"),
            Value::Flag(flag) => write!(f, "{flag}"),
            Value::Number(number) => write!(f, "{number}"),
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Bytes(bytes) => {
                const SHOWN: usize = 16;
                write!(f, "x\"{}", data_encoding::HEXLOWER.encode(bytes.get(..SHOWN).unwrap_or(bytes)))?;
                if bytes.len() > SHOWN { write!(f, "…\" ({} bytes)", bytes.len()) } else { f.write_str("\"") }
            }
            Value::List(values) => f.debug_list().entries(values).finish(),
            Value::Record(fields) => {
                f.write_str("{")?;
                write_fields(f, fields.iter().map(|(name, value)| (name.as_str(), value)))?;
                f.write_str("}")
            }
        }
    }
}

pub(super) fn write_fields<'n, 'v>(
    f: &mut fmt::Formatter<'_>,
    fields: impl Iterator<Item = (&'n str, &'v Value)>,
) -> fmt::Result {
    for (position, (name, value)) in fields.enumerate() {
        write!(f, "{}{name}: {value}", if position == 0 { "" } else { ", " })?;
    }
    Ok(())
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A value that passes through the storage traits.
pub(crate) trait ToValue {
    fn to_value(&self) -> Value;
}

impl<T: ToValue + ?Sized> ToValue for &T {
    fn to_value(&self) -> Value {
        (**self).to_value()
    }
}

impl ToValue for () {
    fn to_value(&self) -> Value {
        Value::Nothing
    }
}

impl ToValue for bool {
    fn to_value(&self) -> Value {
        Value::Flag(*self)
    }
}

macro_rules! numbers {
    ($($type:ty),*) => { $(
        impl ToValue for $type {
            fn to_value(&self) -> Value {
                Value::Number(*self as i128)
            }
        }
    )* };
}
numbers!(i32, i64, u32, u64, usize);

macro_rules! texts {
    ($($type:ty),*) => { $(
        impl ToValue for $type {
            fn to_value(&self) -> Value {
                let text: &str = self;
                Value::Text(text.to_owned())
            }
        }
    )* };
}
texts!(str, String, Arc<str>);

macro_rules! byte_strings {
    ($($type:ty),*) => { $(
        impl ToValue for $type {
            fn to_value(&self) -> Value {
                Value::Bytes(self.to_vec())
            }
        }
    )* };
}
byte_strings!([u8], [u8; 32], Vec<u8>, Bytes);

macro_rules! structs {
    ($($type:ty),*) => { $(
        impl ToValue for $type {
            fn to_value(&self) -> Value {
                Value::serialized(self)
            }
        }
    )* };
}
structs!(AppStateMutationMAC, AppStateSyncKey, Device, DeviceListRecord, HashState, LidPnMappingEntry);
structs!(MsgSecretEntry, TcTokenEntry);

impl ToValue for PendingInboundRow<'_> {
    fn to_value(&self) -> Value {
        let PendingInboundRow { chat, sender, id, message } = self;
        Value::record([("chat", chat), ("sender", sender), ("id", id), ("message", message)])
    }
}

impl ToValue for PendingInboundKey<'_> {
    fn to_value(&self) -> Value {
        let PendingInboundKey { chat, sender, id } = self;
        Value::record([("chat", chat), ("sender", sender), ("id", id)])
    }
}

impl ToValue for StorageResourceReport {
    fn to_value(&self) -> Value {
        let Self { memory_bytes, pages, io_read_bytes, io_write_bytes } = self;
        Value::record([
            ("memory_bytes", memory_bytes),
            ("pages", pages),
            ("io_read_bytes", io_read_bytes),
            ("io_write_bytes", io_write_bytes),
        ])
    }
}

impl<T: ToValue> ToValue for Option<T> {
    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Nothing, T::to_value)
    }
}

impl<T: ToValue> ToValue for [T] {
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(T::to_value).collect())
    }
}

impl<T: ToValue> ToValue for Vec<T> {
    fn to_value(&self) -> Value {
        self.as_slice().to_value()
    }
}

impl<A: ToValue, B: ToValue> ToValue for (A, B) {
    fn to_value(&self) -> Value {
        Value::List(vec![self.0.to_value(), self.1.to_value()])
    }
}

impl<K: ToValue, V: ToValue> ToValue for HashMap<K, V> {
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(|entry| entry.to_value()).collect()).sorted()
    }
}

/// The arguments of one call, as `uniform_layer!` passes them.
pub(crate) trait ToValues {
    fn to_values(&self) -> Vec<Value>;
}

macro_rules! tuples {
    ($(($($argument:ident),*))*) => { $(
        impl<$($argument: ToValue),*> ToValues for ($($argument,)*) {
            fn to_values(&self) -> Vec<Value> {
                #[allow(non_snake_case, reason = "the variable is called as its type")]
                let ($($argument,)*) = self;
                vec![$($argument.to_value()),*]
            }
        }
    )* };
}
tuples!(()(A)(A, B)(A, B, C)(A, B, C, D));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_print_on_one_line_and_shorten_bytes() {
        let row = [(Arc::<str>::from("a@b"), Bytes::from_static(b"\x01\xff"))];
        assert_eq!(row[..].to_value().to_string(), r#"[["a@b", x"01ff"]]"#);
        assert_eq!(vec![7u8; 17].to_value().to_string(), "x\"07070707070707070707070707070707…\" (17 bytes)");
        let token = TcTokenEntry { token: vec![1, 2], token_timestamp: -5, sender_timestamp: None };
        assert_eq!(token.to_value().to_string(), r#"{sender_timestamp: -, token: x"0102", token_timestamp: -5}"#);
        assert_eq!(token.to_value().field("token"), Some(&Value::Bytes(vec![1, 2])));
    }

    #[test]
    fn structs_are_compared_by_every_field() {
        let one = LidPnMappingEntry {
            lid: "1".into(),
            phone_number: "2".into(),
            created_at: 3,
            updated_at: 4,
            learning_source: "5".into(),
        };
        let Value::Record(fields) = one.to_value() else { panic!("not a record") };
        assert_eq!(fields.len(), 5);
        assert_ne!(LidPnMappingEntry { updated_at: 5, ..one.clone() }.to_value(), one.to_value());
    }
}
