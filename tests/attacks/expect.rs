//! What becomes of an attack.

/// What is expected. The words are shown in docs/security.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It fails. In the cluster a part of the refusal, in the database the SQLSTATE or `rejected: REASON`; several with
    /// `|` between them, where several rules refuse and one of them tells.
    Refused(&'static str),
    /// It goes through, and nothing is lost by it: why.
    Harmless(&'static str),
    /// It goes through, and only the rights of whoever does it limit the harm: what it does, and what ends it.
    Limited(&'static str),
}

impl Expect {
    pub fn word(self) -> &'static str {
        match self {
            Expect::Refused(_) => "refused",
            Expect::Harmless(_) => "harmless",
            Expect::Limited(_) => "limited",
        }
    }

    /// Whether what was answered is one of the answers that were expected.
    pub fn names(parts: &str, answer: &str) -> bool {
        parts.split('|').any(|part| answer.contains(part))
    }
}
