//! The command line as a row of options, each with its argument: files of `-readconfig` are read in their place, JSON is made
//! lists of properties.

use std::collections::VecDeque;

use super::config_file;
use super::error::OptionError;
use super::json;
use super::syntax;
use super::table::{self, Kind, Value};

/// An option of the command line.
#[derive(Clone, Debug)]
pub struct Item {
    /// As it was written, or where it was.
    pub option: String,
    /// What is done with it.
    pub kind: Kind,
    /// Its argument, if it has one.
    pub value: Option<String>,
}

/// Cuts the command line into options, up to the first mistake.
pub fn items(words: Vec<String>) -> Vec<Result<Item, OptionError>> {
    let mut words = VecDeque::from(words);
    let mut items = Vec::new();
    while let Some(word) = words.pop_front() {
        match item(word, &mut words) {
            Ok(Item { option, kind: Kind::Value(Value::ReadConfig), value: Some(file) }) => {
                let before = items.len();
                items.extend(config_file::items(&option, &file));
                if items[before..].iter().any(Result::is_err) {
                    return items;
                }
            }
            Ok(item) => items.push(Ok(item)),
            Err(error) => {
                items.push(Err(error));
                return items;
            }
        }
    }
    items
}

fn item(option: String, rest: &mut VecDeque<String>) -> Result<Item, OptionError> {
    let Some(name) = option.strip_prefix("--").or_else(|| option.strip_prefix('-')) else {
        return Err(OptionError::NotBuilt(format!("{option}: a disk image")));
    };
    let kind = table::find(name).ok_or_else(|| unknown(&option, name))?;
    let value = if table::takes_argument(kind) {
        Some(rest.pop_front().ok_or_else(|| OptionError::MissingArgument(option.clone()))?)
    } else {
        None
    };
    let value = value.map(|value| json::pairs(&option, kind, value)).transpose()?;
    Ok(Item { option, kind, value })
}

fn unknown(option: &str, name: &str) -> OptionError {
    let nearest = syntax::nearest(name, table::names()).map(|name| format!("-{name}"));
    OptionError::Unknown { option: option.to_owned(), nearest }
}
