//! Who exists: the accounts that grants may name and answers show, as far as the keys known here tell.

use karri_base::aws::keys::KeyRing;

/// What access control lists need to know about accounts.
pub trait People {
    /// True for an account that there is.
    fn exists(&self, account: &str) -> bool;
    /// The name that owners and grantees are shown with.
    fn display(&self, account: &str) -> Option<String>;
    /// The account with this address.
    fn by_email(&self, email: &str) -> Option<String>;
}

impl People for KeyRing {
    fn exists(&self, account: &str) -> bool {
        self.accounts().iter().any(|a| a.id.as_str() == account)
    }
    fn display(&self, account: &str) -> Option<String> {
        // As LIST shows owners: by number.
        Some(account.to_owned())
    }
    fn by_email(&self, email: &str) -> Option<String> {
        let known = self.accounts().into_iter().find(|a| !a.email.is_empty() && a.email.eq_ignore_ascii_case(email))?;
        Some(known.id.as_str().to_owned())
    }
}
