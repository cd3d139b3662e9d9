//! New ports in the text of a configuration, with its comments and layout kept.

use std::fmt;

use toml_edit::{Array, DocumentMut, Item, Table, TableLike, Value};

use super::{PoolName, Port, Protocol};
use crate::config::PortSet;

/// Why a text was not changed. It completes "the configuration …".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EditError {
    /// It is not TOML.
    NotToml(String),
    /// It has the pool already.
    Exists(PoolName),
    /// It has no such pool.
    Missing(PoolName),
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EditError::NotToml(reason) => write!(f, "is not TOML: {reason}"),
            EditError::Exists(name) => write!(
                f,
                "has a pool {name} already; give it more ports with: portpool next pool:{name} --write"
            ),
            EditError::Missing(name) => write!(f, "has no pool {name}"),
        }
    }
}

/// A pool to write down.
#[derive(Clone, Debug)]
pub(crate) struct NewPool<'a> {
    pub(crate) name: &'a PoolName,
    pub(crate) ports: &'a [Port],
    pub(crate) category: Option<&'a str>,
    /// Where it is not what a pool has that says nothing.
    pub(crate) protocol: Option<Protocol>,
}

/// The text with `[pool.NAME]` after the pools there are.
pub(crate) fn add_pool(text: &str, pool: &NewPool) -> Result<String, EditError> {
    let mut document = parse(text)?;
    let is_first = document.get("pool").is_none();
    let pools = document.entry("pool").or_insert_with(|| {
        let mut pools = Table::new();
        pools.set_implicit(true);
        Item::Table(pools)
    });
    let not_a_table = || EditError::NotToml("`pool` is no table".to_owned());
    let pools = pools.as_table_like_mut().ok_or_else(not_a_table)?;
    if pools.contains_key(pool.name.as_str()) {
        return Err(EditError::Exists(pool.name.clone()));
    }
    let mut table = Table::new();
    table.insert("ports", value_of(pool.ports, None).into());
    if let Some(category) = pool.category {
        table.insert("category", toml_edit::value(category));
    }
    if let Some(protocol) = pool.protocol {
        table.insert("protocol", toml_edit::value(protocol.to_string()));
    }
    if let Some(position) = last_position(pools).filter(|_| !is_first) {
        table.set_position(Some(position));
    }
    let blank = if text.trim().is_empty() { "" } else { "\n" };
    table.decor_mut().set_prefix(blank);
    pools.insert(pool.name.as_str(), Item::Table(table));
    Ok(document.to_string())
}

/// The text with more ports for a pool, after those it has.
pub(crate) fn add_ports(text: &str, pool: &PoolName, ports: &[Port]) -> Result<String, EditError> {
    let mut document = parse(text)?;
    let missing = || EditError::Missing(pool.clone());
    let value = document
        .get_mut("pool")
        .and_then(|pools| pools.as_table_like_mut()?.get_mut(pool.as_str()))
        .and_then(|pool| pool.as_table_like_mut()?.get_mut("ports"))
        .and_then(Item::as_value_mut)
        .ok_or_else(missing)?;
    let decor = value.decor().clone();
    match value {
        Value::Array(array) => array.extend(ports.iter().map(|port| i64::from(port.get()))),
        other => {
            let old = match &other {
                Value::Integer(number) => number.value().to_string(),
                Value::String(text) => text.value().clone(),
                _ => return Err(missing()),
            };
            let old: PortSet = old.parse().map_err(|_| missing())?;
            *other = value_of(ports, Some(&old));
            *other.decor_mut() = decor;
        }
    }
    Ok(document.to_string())
}

fn parse(text: &str) -> Result<DocumentMut, EditError> {
    text.parse()
        .map_err(|error: toml_edit::TomlError| EditError::NotToml(error.to_string()))
}

/// Ports as one would write them: `7201`, `"7201-7203"`, `[7201, 7211]`.
fn value_of(ports: &[Port], before: Option<&PortSet>) -> Value {
    let before = before.into_iter().flat_map(PortSet::iter);
    let set: PortSet = before.chain(ports.iter().copied()).collect();
    let text = set.to_string();
    if let [one] = set.iter().collect::<Vec<_>>().as_slice() {
        return i64::from(one.get()).into();
    }
    if text.contains('-') {
        return text.into();
    }
    set.iter()
        .map(|port| i64::from(port.get()))
        .collect::<Array>()
        .into()
}

/// Where the last of some tables stands in the file.
fn last_position(tables: &dyn TableLike) -> Option<isize> {
    let positions = tables
        .iter()
        .filter_map(|(_, item)| item.as_table()?.position());
    positions.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(numbers: &[u16]) -> Vec<Port> {
        numbers.iter().filter_map(|it| Port::new(*it)).collect()
    }

    fn with_pool(text: &str, name: &str, numbers: &[u16]) -> String {
        let name = name.parse().unwrap();
        let pool = NewPool {
            name: &name,
            ports: &ports(numbers),
            category: Some("worker"),
            protocol: None,
        };
        add_pool(text, &pool).unwrap()
    }

    #[test]
    fn a_new_pool_stands_after_the_others_and_nothing_else_changes() {
        let text = "# top\n[plan]\nname = 'x' # kept\n\n[pool.a]\nports   = 1   # one\n\n# ranges\n[range.r]\nports = 5\n# end\n";
        let expected = "# top\n[plan]\nname = 'x' # kept\n\n[pool.a]\nports   = 1   # one\n\n[pool.b]\nports = \"7-8\"\ncategory = \"worker\"\n\n# ranges\n[range.r]\nports = 5\n# end\n";
        assert_eq!(with_pool(text, "b", &[7, 8]), expected);
        let first = with_pool("", "b", &[7]);
        assert_eq!(first, "[pool.b]\nports = 7\ncategory = \"worker\"\n");
    }

    #[test]
    fn more_ports_come_after_those_there_are_in_the_form_they_have() {
        let more = |value: &str, numbers: &[u16]| {
            let text = format!("[pool.a]\nports = {value} # why\n");
            let text = add_ports(&text, &"a".parse().unwrap(), &ports(numbers)).unwrap();
            text.replace("[pool.a]\nports = ", "")
                .replace(" # why\n", "")
        };
        assert_eq!(more("7200", &[7201]), "\"7200-7201\"");
        assert_eq!(more("7200", &[7300]), "[7200, 7300]");
        assert_eq!(more("\"9000-9002\"", &[9003]), "\"9000-9003\"");
        assert_eq!(more("[6000, 6001]", &[6002]), "[6000, 6001, 6002]");
    }

    #[test]
    fn a_pool_that_is_there_is_not_written_again() {
        let name: PoolName = "a".parse().unwrap();
        let pool = NewPool {
            name: &name,
            ports: &ports(&[1]),
            category: None,
            protocol: None,
        };
        let refused = add_pool("[pool.a]\nports = 5\n", &pool);
        assert_eq!(refused, Err(EditError::Exists(name.clone())));
        let refused = add_ports("[plan]\n", &name, &ports(&[1]));
        assert_eq!(refused, Err(EditError::Missing(name)));
    }
}
