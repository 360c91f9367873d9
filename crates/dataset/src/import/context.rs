//! The viewer's context in files of events: platforms, regions and locales as common tools write them.
use super::mapping::Mapping;
use lodestone_core::text::plain_name;
use lodestone_core::viewer::{Locale, Platform, Region};

/// Names of platforms in common tools, as [`plain_name`] returns them. The platforms' own names are known as well.
const COMMON_PLATFORMS: [(&str, Platform); 21] = [
    ("desktop", Platform::Web),
    ("desktopweb", Platform::Web),
    ("website", Platform::Web),
    ("browser", Platform::Web),
    ("pc", Platform::Web),
    ("mobile", Platform::MobileWeb),
    ("mweb", Platform::MobileWeb),
    ("phone", Platform::MobileWeb),
    ("smartphone", Platform::MobileWeb),
    ("tablet", Platform::MobileWeb),
    ("iosapp", Platform::Ios),
    ("iphone", Platform::Ios),
    ("ipad", Platform::Ios),
    ("androidapp", Platform::Android),
    ("androidphone", Platform::Android),
    ("wechat", Platform::MiniProgram),
    ("miniapp", Platform::MiniProgram),
    ("pos", Platform::Store),
    ("kiosk", Platform::Store),
    ("instore", Platform::Store),
    ("offline", Platform::Store),
];

/// ISO 3166-1: each line has a code, the English name of the country and other names of it, separated by `|`.
const COUNTRIES: &str = include_str!("countries.txt");

impl Mapping {
    /// Returns the platform of a name in the file: that of the table `platforms`, or else the one of that name or of a
    /// common name, regardless of letter case, spaces and punctuation. The error is for a name that is not known.
    pub(super) fn platform_of(&self, name: &str) -> Result<Option<Platform>, ()> {
        if let Some(mapped) = self.platforms.get(name) {
            return Ok(mapped.0);
        }
        let name = plain_name(name);
        let own = Platform::ALL.into_iter().find(|platform| plain_name(platform.name()) == name);
        let common = || COMMON_PLATFORMS.iter().find(|(common, _)| *common == name).map(|(_, platform)| *platform);
        own.or_else(common).map(Some).ok_or(())
    }

    /// The same for a region: that of the table `regions`, a code of two letters, or the English name of a country.
    pub(super) fn region_of(&self, name: &str) -> Result<Option<Region>, ()> {
        match self.regions.get(name) {
            Some(mapped) => Ok(mapped.0),
            None => Region::parse(name).or_else(|| region_of_country(name)).map(Some).ok_or(()),
        }
    }
}

/// Returns the language tag of a text, in which `_` may stand for `-`.
pub(super) fn locale_of(text: &str) -> Option<Locale> {
    Locale::parse(&text.replace('_', "-"))
}

fn region_of_country(name: &str) -> Option<Region> {
    let mut lines = COUNTRIES.lines().filter_map(|line| line.split_once(' '));
    let (code, _) = lines.find(|(_, names)| names.split('|').any(|known| known.eq_ignore_ascii_case(name)))?;
    Region::parse(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn countries_have_codes_and_distinct_names() {
        let lines: Vec<(&str, &str)> = COUNTRIES.lines().map(|line| line.split_once(' ').unwrap()).collect();
        assert!(lines.is_sorted_by(|(a, _), (b, _)| a < b));
        assert!(lines.iter().all(|(code, _)| Region::parse(code).is_some_and(|region| region.as_str() == *code)));
        let mut names: Vec<&str> = lines.iter().flat_map(|(_, names)| names.split('|')).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        let code = |name| region_of_country(name).map(|region| region.as_str().to_owned());
        assert_eq!(["united kingdom", "Türkiye", "Elbonia"].map(code), [Some("GB".into()), Some("TR".into()), None]);
    }

    #[test]
    fn common_platforms_are_in_their_normal_form() {
        for (name, platform) in COMMON_PLATFORMS {
            assert_eq!(plain_name(name), name);
            assert!(Platform::ALL.iter().all(|own| plain_name(own.name()) != name), "{name} {platform:?}");
        }
    }
}
