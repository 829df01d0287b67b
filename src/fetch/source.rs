//! Where an artifact is, and what it must be: read from text. Pure.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use reqwest::Url;
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Where an artifact is.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// A file that is mounted here.
    File(PathBuf),
    /// A web server's.
    Http(Url),
}

/// Without what may be a secret: the user's part, and the query, which has the signature of a presigned URL.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Http(url) => {
                let mut shown = url.clone();
                // It has a host: these cannot fail.
                let _ = (shown.set_username(""), shown.set_password(None));
                shown.set_query(url.query().map(|_| "…"));
                shown.set_fragment(None);
                f.write_str(&shown.as_str().replace("%E2%80%A6", "…"))
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({self})")
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text.split_once(':') {
                Some((scheme, _)) if scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric()) => {
                    Err(unknown_scheme(scheme))
                }
                _ if text.is_empty() => Err("it is empty: give a path or a URL".into()),
                _ => Ok(Self::File(text.into())),
            };
        };
        match scheme.to_ascii_lowercase().as_str() {
            // As it is written, without an encoding: `file:///models/a b` is the path `/models/a b`.
            "file" => match rest.strip_prefix("localhost").unwrap_or(rest) {
                path if path.starts_with('/') => Ok(Self::File(path.into())),
                _ => Err("a file URL has an absolute path: file:///models/churn.tar".into()),
            },
            "http" | "https" => {
                // Not the text: it may hold a password.
                let url = Url::parse(text).map_err(|error| format!("it is no URL: {error}"))?;
                Ok(Self::Http(url))
            }
            other => Err(unknown_scheme(other)),
        }
    }
}

fn unknown_scheme(scheme: &str) -> String {
    let known = match scheme {
        "s3" | "gs" | "gcs" | "az" | "abfs" | "abfss" | "wasbs" | "hdfs" => {
            "presign it and give the https:// URL by --source (the digest still holds), or mount the bucket and give a path"
        }
        "oci" | "docker" => "give the https:// URL of the blob, or mount the image as a volume and give a path",
        _ => "give a path, file://, http:// or https://",
    };
    format!("{scheme:?} is not a scheme that can be fetched: {known}")
}

/// A SHA-256, as `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of what was hashed so far.
    pub(super) fn of(hash: &Sha256) -> Self {
        Self(hash.clone().finalize().into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a digest is sha256: and 64 lower-case hexadecimal digits, as sha256sum prints them";
        let digits = text.strip_prefix("sha256:").filter(|digits| !digits.contains(|c: char| c.is_ascii_uppercase()));
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits.ok_or(WRONG)?, &mut bytes).map_err(|_| WRONG)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Result<Source, String> {
        text.parse()
    }

    #[test]
    fn paths_files_and_web_servers_are_sources() {
        for (text, path) in [
            ("/models/a", "/models/a"),
            ("a/b", "a/b"),
            ("file:///models/a b", "/models/a b"),
            ("file://localhost/m", "/m"),
            ("a:b/c", "a:b/c"),
        ] {
            assert_eq!(source(text), Ok(Source::File(path.into())), "{text}");
        }
        assert!(matches!(source("HTTPS://models.example/a"), Ok(Source::Http(_))));
        for text in ["", "file://models/a", "http://", "https://[", "ftp://x/y", "mailto:x"] {
            assert!(source(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bucket_is_refused_with_what_to_do() {
        for text in ["s3://models/churn/7", "gs://models/churn", "s3:models"] {
            assert!(source(text).is_err_and(|why| why.contains("presign") && why.contains("mount")), "{text}");
        }
    }

    #[test]
    fn what_is_shown_of_a_source_holds_no_secret() {
        let source: Source = "https://ada:pass@models.example/churn/7?X-Signature=abc#part".parse().unwrap();
        for shown in [source.to_string(), format!("{source:?}")] {
            assert!(!["ada", "pass", "abc", "part"].iter().any(|secret| shown.contains(secret)), "{shown}");
            assert!(shown.contains("https://models.example/churn/7?…"), "{shown}");
        }
        let wrong = "https://ada:pass@[models/churn".parse::<Source>().unwrap_err();
        assert!(!wrong.contains("pass"), "{wrong}");
    }

    #[test]
    fn a_digest_is_read_as_it_is_printed() {
        let text = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(text.parse::<Digest>().map(|digest| digest.to_string()), Ok(text));
        for text in ["", "sha256:", "sha256:0a", &format!("sha256:{}", "0A".repeat(32)), &"0a".repeat(32)] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
