//! JSON as the argument of options that QEMU takes it for, made the list of properties that says the same (QEMU, *Invocation*).

use serde_json::{Map, Value as Json};

use super::error::{Context, OptionError};
use super::table::{Kind, Value};

/// The list that says what `value` says; `value` if it is no JSON. `option`: as written.
pub fn pairs(option: &str, kind: Kind, value: String) -> Result<String, OptionError> {
    let Some(first_key) = first_key(kind).filter(|_| value.trim_start().starts_with('{')) else {
        return Ok(value);
    };
    let context = Context { option, value: &value };
    let object: Map<String, Json> =
        serde_json::from_str(&value).map_err(|error| context.bad(format!("not JSON: {error}")))?;
    let mut pairs = Vec::new();
    for (key, content) in &object {
        add(context, key, content, &mut pairs)?;
    }
    // The list's readers want it there.
    pairs.sort_by_key(|(key, _)| key != first_key);
    let text = pairs.iter().map(|(key, content)| format!("{key}={}", content.replace(',', ",,")));
    Ok(text.collect::<Vec<_>>().join(","))
}

/// Options that take JSON, and the property that says what a thing is.
fn first_key(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Value(Value::Device | Value::Blockdev) => Some("driver"),
        Kind::Value(Value::Object) => Some("qom-type"),
        Kind::Value(Value::Netdev) => Some("type"),
        _ => None,
    }
}

fn add(
    context: Context,
    key: &str,
    content: &Json,
    pairs: &mut Vec<(String, String)>,
) -> Result<(), OptionError> {
    if key.contains(['=', ',']) {
        return Err(context.bad(format!("'{key}' is the name of no property")));
    }
    let text = match content {
        Json::String(text) => text.clone(),
        Json::Bool(switch) => if *switch { "on" } else { "off" }.to_owned(),
        Json::Number(number) => number.to_string(),
        Json::Null => return Err(context.bad(format!("'{key}' is null"))),
        // Of a list of texts each is a property of that name.
        Json::Array(list) => {
            for element in list {
                let text = element.get("str").unwrap_or(element);
                if !text.is_string() && !text.is_number() {
                    return Err(context.bad(format!("'{key}' takes a list of texts")));
                }
                add(context, key, text, pairs)?;
            }
            return Ok(());
        }
        Json::Object(object) => {
            for (inner, content) in object {
                add(context, &format!("{key}.{inner}"), content, pairs)?;
            }
            return Ok(());
        }
    };
    pairs.push((key.to_owned(), text));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Value, value: &str) -> Result<String, String> {
        pairs("-x", Kind::Value(kind), value.to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn lists_that_say_the_same() {
        let same = |kind, json, list: &str| assert_eq!(read(kind, json), Ok(list.to_owned()));
        same(Value::Device, "virtio-blk,drive=d", "virtio-blk,drive=d");
        let json = r#"{"drive":"a,b","driver":"virtio-blk-device","num-queues":4,"discard":false}"#;
        same(Value::Device, json, "driver=virtio-blk-device,discard=off,drive=a,,b,num-queues=4");
        let json = r#" {"driver":"qcow2","node-name":"n","file":{"driver":"file","filename":"/x"}}"#;
        same(Value::Blockdev, json, "driver=qcow2,file.driver=file,file.filename=/x,node-name=n");
        let json = r#"{"type":"user","id":"n","hostfwd":[{"str":"tcp::1-:2"},{"str":"tcp::3-:4"}]}"#;
        same(Value::Netdev, json, "type=user,hostfwd=tcp::1-:2,hostfwd=tcp::3-:4,id=n");
        // A kernel's command line may begin as it likes.
        same(Value::Append, "{}", "{}");
    }

    #[test]
    fn mistakes_are_one_line() {
        for (json, part) in [
            ("{", "not JSON: EOF while parsing"),
            ("{\"driver\":1}}", "not JSON: trailing characters"),
            (r#"{"driver":null}"#, "'driver' is null"),
            (r#"{"a=b":"c"}"#, "'a=b' is the name of no property"),
            (r#"{"driver":[[]]}"#, "'driver' takes a list of texts"),
        ] {
            let error = read(Value::Device, json).unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{json}: {error}");
        }
    }
}
