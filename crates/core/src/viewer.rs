//! The platform, the region and the locale of a viewer: the context of a request or an event.
use std::sync::Arc;

/// Greatest length of a language tag in bytes.
pub const LOCALE_BYTES_MAX: usize = 35;

/// The kind of program or place in which a viewer looks at the shop. The numbers are those of `lodestone.v1.Platform`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Platform {
    /// A web browser on a desktop computer.
    Web = 1,
    /// A web browser on a phone.
    MobileWeb = 2,
    Ios = 3,
    Android = 4,
    /// A program inside another app.
    MiniProgram = 5,
    /// A physical store, such as a kiosk or a till.
    Store = 6,
}

impl Platform {
    pub const ALL: [Self; 6] = [Self::Web, Self::MobileWeb, Self::Ios, Self::Android, Self::MiniProgram, Self::Store];

    /// Returns none for 0 and for numbers of no platform.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|platform| *platform as i32 == number)
    }

    /// Returns the name in files, such as `mobile_web`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::MobileWeb => "mobile_web",
            Self::Ios => "ios",
            Self::Android => "android",
            Self::MiniProgram => "mini_program",
            Self::Store => "store",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|platform| platform.name() == name)
    }
}

/// An ISO 3166-1 alpha-2 code of a country, in upper case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region([u8; 2]);

impl Region {
    /// Accepts two ASCII letters of either case; the code need not be assigned.
    pub fn parse(text: &str) -> Option<Self> {
        let letters: [u8; 2] = text.as_bytes().try_into().ok()?;
        letters.iter().all(u8::is_ascii_alphabetic).then(|| Self(letters.map(|letter| letter.to_ascii_uppercase())))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("two ASCII letters")
    }
}

/// A BCP 47 language tag such as `en-GB`. The language is in lower case, the other subtags are as they were sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Locale(Arc<str>);

impl Locale {
    /// Accepts the form of RFC 5646, at most [`LOCALE_BYTES_MAX`] bytes; the subtags need not be registered.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() <= LOCALE_BYTES_MAX && is_language_tag(text)).then(|| {
            let (language, rest) = text.split_at(text.find('-').unwrap_or(text.len()));
            Self(Arc::from(language.to_ascii_lowercase() + rest))
        })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the language alone: the first subtag.
    pub fn language(&self) -> &str {
        self.0.split('-').next().unwrap_or_default()
    }
}

fn is_language_tag(text: &str) -> bool {
    let mut subtags = text.split('-');
    let language = subtags.next().unwrap_or_default();
    // A tag of private use begins with `x`, and some old tags with `i`.
    let is_prefix = matches!(language, "x" | "X" | "i" | "I") && text.len() > 1;
    let is_language = (2..=8).contains(&language.len()) && language.bytes().all(|byte| byte.is_ascii_alphabetic());
    let is_subtag =
        |subtag: &str| (1..=8).contains(&subtag.len()) && subtag.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_language || is_prefix) && subtags.all(is_subtag)
}

/// How and where a viewer looks at the shop; each part is none if it is not known. 24 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ViewerContext {
    pub locale: Option<Locale>,
    pub platform: Option<Platform>,
    pub region: Option<Region>,
}

impl ViewerContext {
    /// Returns the texts that records and files keep: the name of the platform, the region and the locale. Empty for a
    /// part that is not known.
    pub fn texts(&self) -> [&str; 3] {
        [
            self.platform.map_or("", Platform::name),
            self.region.as_ref().map_or("", Region::as_str),
            self.locale.as_ref().map_or("", Locale::as_str),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locales_and_regions_have_the_form_of_their_standards() {
        let long = "en-x-".to_owned() + &"a-".repeat(14) + "aa";
        for locale in ["en", "en-GB", "zh-Hans", "de-CH-1901", "sl-rozaj-biske", "x-shop", "i-klingon", &long] {
            assert_eq!(Locale::parse(locale).unwrap().as_str(), locale);
        }
        for locale in
            ["", "!!!", "en_GB", "en GB", "e", "x", "-", "en-", "en--GB", "12", "en-toolongtag", "日本", &(long + "b")]
        {
            assert_eq!(Locale::parse(locale), None, "{locale}");
        }
        let locale = Locale::parse("ZH-Hans").unwrap();
        assert_eq!((locale.as_str(), locale.language()), ("zh-Hans", "zh"));
        assert_eq!(Region::parse("gB").unwrap().as_str(), "GB");
        for region in ["", "!!", "G", "GBR", "12", "ß"] {
            assert_eq!(Region::parse(region), None, "{region}");
        }
    }

    #[test]
    fn platforms_have_names_and_numbers() {
        for platform in Platform::ALL {
            assert_eq!(Platform::from_number(platform as i32), Some(platform));
            assert_eq!(Platform::from_name(platform.name()), Some(platform));
        }
        assert_eq!([0, 7, -1].map(Platform::from_number), [None; 3]);
    }

    #[test]
    fn a_context_takes_24_bytes() {
        assert_eq!(size_of::<ViewerContext>(), 24);
    }
}
