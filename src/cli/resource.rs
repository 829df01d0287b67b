//! Names of resources on the command line.

use std::str::FromStr;

use super::Error;
use crate::plan::resource_of;
use crate::store::{LeaseRow, Store};

/// A resource as a person names it: in full, or `NAMESPACE/NAME` for a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource(String);

impl FromStr for Resource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.chars().count() {
            0 => Err("it is empty".into()),
            513.. => Err("a resource has at most 512 characters".into()),
            _ if text.chars().any(char::is_control) => Err("a resource has no control characters".into()),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

impl Resource {
    /// What it may stand for, the likeliest first: what was written always comes before what it may abbreviate.
    fn candidates(&self) -> Vec<String> {
        let mut candidates = vec![self.0.clone()];
        if let Some((namespace, name)) = self.0.split_once('/')
            && !name.contains('/')
        {
            candidates.push(resource_of(namespace, name));
        }
        candidates
    }

    /// The lease that is meant.
    pub(super) async fn lease(&self, store: &Store) -> Result<LeaseRow, Error> {
        for candidate in self.candidates() {
            // By prefix, so others may come along; the one itself is the first, by name.
            if let Some(row) = store.leases(&candidate).await?.into_iter().find(|row| row.resource == candidate) {
                return Ok(row);
            }
        }
        Err(Error::not_found_next(
            format!("there is no lease of {:?}, and there never was", self.0),
            "palisade lease ls shows what there is; a deployment may be named NAMESPACE/NAME",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_comes_before_what_it_may_abbreviate() {
        let candidates = |text: &str| text.parse::<Resource>().map(|r| r.candidates());
        let expected = vec!["shop/churn".to_owned(), "deployment/shop/churn".to_owned()];
        assert_eq!(candidates("shop/churn"), Ok(expected));
        assert_eq!(candidates("deployment/shop/churn"), Ok(vec!["deployment/shop/churn".to_owned()]));
        assert_eq!(candidates("churn"), Ok(vec!["churn".to_owned()]));
    }

    #[test]
    fn what_no_resource_can_be_called_is_refused() {
        for text in ["", "a\u{0}b", "a\nb", &"x".repeat(513)] {
            assert!(text.parse::<Resource>().is_err(), "{text:?}");
        }
    }
}
